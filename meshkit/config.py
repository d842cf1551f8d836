"""Configuration of the long-running processes, as files say it. Checked here; timing in `fencing`.

Paths are relative to the file that names them. A private key that others may read is refused
unless `MESH_ALLOW_READABLE_KEYS=1`. Whether the lease times fit each other is decided by
`fencing.timing`, which `mesh config validate` and both services call.
"""

from __future__ import annotations

import enum
import os
import stat
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import attrs

from meshkit.errors import InvalidConfig
from meshkit.names import ClusterName
from meshkit.yaml_records import load_record

ALLOW_READABLE_KEYS = "MESH_ALLOW_READABLE_KEYS"


@attrs.frozen
class HostPort:
    """Where to listen, as `host:port`; port 0 takes any free one."""

    EXPECTED: ClassVar[str] = "host:port"

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Return the address in `text`; `ValueError` says what is wrong with it."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"expected host:port such as 127.0.0.1:7443, found {text!r}")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen(kw_only=True)
class EtcdConfig:
    """How to reach one etcd cluster. TLS unless `allow_plaintext`."""

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None
    allow_plaintext: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("endpoints: at least one is needed")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint, allow_plaintext=self.allow_plaintext)
        if self.is_tls and self.ca is None:
            raise ValueError("ca: is required for https endpoints")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key: give both or neither")
        if bool(self.username) != (self.password_file is not None):
            raise ValueError("username and password_file: give both or neither")

    @property
    def is_tls(self) -> bool:
        """Whether the endpoints are https."""
        return self.endpoints[0].startswith("https://")

    def password(self) -> str:
        """Return the password in `password_file`, without the line end.

        Raises:
            InvalidConfig: it cannot be read.
        """
        if self.password_file is None:
            return ""
        try:
            return self.password_file.read_text().rstrip("\r\n")
        except OSError as error:
            raise InvalidConfig(f"cannot read {self.password_file}: {error.strerror}") from error


@attrs.frozen(kw_only=True)
class IdentityConfig:
    """Who this process is to its peers: certificate, key, and the CA that vouches for others."""

    ca: Path
    cert: Path
    key: Path
    trust_domain: str = "mesh.local"
    """The host part of every peer's `spiffe://` identity."""


class TimingProfile(enum.Enum):
    """Named sets of lease times (architecture section 4)."""

    DEFAULT = "default"
    FAST = "fast"


@attrs.frozen(kw_only=True)
class TimingConfig:
    """Lease times: a profile, and values that replace its own. None takes the profile's."""

    profile: TimingProfile = TimingProfile.DEFAULT
    coordination_ttl_ms: int | None = None
    """TTL of the coordination lease (`Tc`)."""
    regional_ttl_ms: int | None = None
    """TTL of the regional lease that carries the permits (`Tr`)."""
    round_interval_ms: int | None = None
    """From the end of one round of renewals to the next."""
    election_timeout_ms: int | None = None
    """Election timeout of the coordination etcd."""
    leader_ttl_ms: int | None = None
    """TTL of the leader keys of replicators and coordinators."""
    expiry_delay_ms: int | None = None
    """How late etcd notices that a lease has run out."""
    rho_ppm: int | None = None
    """How far two clocks' rates may differ, in parts per million."""

    def __attrs_post_init__(self) -> None:
        for name, value in self.overrides().items():
            if value < (0 if name == "rho_ppm" else 1):
                raise ValueError(f"{name}: must be positive, found {value}")

    def overrides(self) -> dict[str, int]:
        """Return only the values given explicitly, by name."""
        given = attrs.asdict(self, filter=lambda a, v: a.name != "profile" and v is not None)
        return typing.cast("dict[str, int]", given)


class LogLevel(enum.Enum):
    """From which level on events are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.Enum):
    """How an event is written."""

    JSON = "json"
    CONSOLE = "console"


@attrs.frozen(kw_only=True)
class LogConfig:
    """What is logged and where; stderr when there is no file."""

    level: LogLevel = LogLevel.INFO
    file: Path | None = None
    format: LogFormat = LogFormat.JSON


def _bounded(low: int, high: int) -> Callable[[Any, Any, int], None]:
    def check(_record: Any, attribute: Any, value: int) -> None:
        if not low <= value <= high:
            raise ValueError(f"{attribute.name}: must be from {low} to {high}, found {value}")

    return check


@attrs.frozen(kw_only=True)
class LimitsConfig:
    """Bounds of a replicator's memory, batches and patience."""

    frame_bytes_max: int = attrs.field(
        default=512 * 1024, validator=_bounded(16 * 1024, 16 * 1024 * 1024)
    )
    """A frame is closed when it reaches this, unless one revision alone is larger."""
    frame_wait_ms: int = attrs.field(default=3, validator=_bounded(0, 1_000))
    """How long a frame waits for more records."""
    credit_bytes: int = attrs.field(
        default=16 * 1024 * 1024, validator=_bounded(64 * 1024, 1024 * 1024 * 1024)
    )
    """Bytes one stream may have in flight and in memory."""
    apply_bytes_max: int = attrs.field(
        default=1024 * 1024, validator=_bounded(16 * 1024, 64 * 1024 * 1024)
    )
    """Size of one apply transaction; below etcd's --max-request-bytes."""
    copy_page_keys: int = attrs.field(default=2_000, validator=_bounded(1, 100_000))
    copy_page_bytes: int = attrs.field(
        default=512 * 1024, validator=_bounded(16 * 1024, 16 * 1024 * 1024)
    )
    copy_bytes_per_s: int = attrs.field(default=0, validator=_bounded(0, 1_000_000_000_000))
    """What all copies out of this region may send together, so that they leave room for the rest;
    0: as fast as they can. What is equal at the target already is not sent and does not count."""
    backlog_revisions: int = attrs.field(
        default=1_000_000, validator=_bounded(0, 1_000_000_000_000)
    )
    """A standby that comes back further behind than this is copied (only what differs is sent), if
    that is cheaper than its backlog; 0: never."""
    idle_checkpoint_ms: int = attrs.field(default=5_000, validator=_bounded(100, 600_000))
    """Checkpoints that record nothing but coverage are written at most this often."""
    parent_patience_ms: int = attrs.field(default=3_000, validator=_bounded(0, 600_000))
    """How long a stream waits for its parent's before the group is copied anew."""


class FenceKind(enum.Enum):
    """What keeps clients from writing to a cluster that is not active."""

    PERMIT = "permit"
    """The permit, which each write compares."""
    RBAC = "rbac"
    """Besides the permit, etcd's own access control; needs auth enabled, and its role `root`."""


@attrs.frozen(kw_only=True)
class SpoolConfig:
    """Local disk for what a standby has not stored, so that a long outage ends without a copy."""

    directory: Path
    """Of this process alone: each replicator of a region keeps a spool of its own."""
    bytes_max: int = attrs.field(
        default=1024 * 1024 * 1024, validator=_bounded(1024 * 1024, 1024 * 1024 * 1024 * 1024)
    )
    """When it is full the oldest is dropped: who needs that is copied."""
    late_ms: int = attrs.field(default=15_000, validator=_bounded(1_000, 3_600_000))
    """A standby that has stored nothing new for so long is spooled for."""


@attrs.frozen(kw_only=True)
class CompactorConfig:
    """Compaction of the region's etcd that waits for standbys. Turn etcd's own off beside it."""

    keep_ms: int = attrs.field(default=300_000, validator=_bounded(10_000, 7 * 86_400_000))
    """Younger history is never dropped."""
    hold_ms: int = attrs.field(default=6 * 3_600_000, validator=_bounded(10_000, 30 * 86_400_000))
    """For a standby that stores nothing, history is kept no longer than this."""
    step_revisions: int = attrs.field(default=1_000, validator=_bounded(1, 10_000_000))
    """It does not compact for fewer revisions."""

    def __attrs_post_init__(self) -> None:
        if self.hold_ms < self.keep_ms:
            raise ValueError("hold_ms: must not be less than keep_ms")


@attrs.frozen(kw_only=True)
class ReplicatorConfig:
    """One replicator process of a region."""

    cluster: ClusterName
    name: str
    """Distinguishes the replicators of one cluster."""
    listen: HostPort
    """Where other clusters' replicators dial in."""
    regional_etcd: EtcdConfig
    coordination_etcd: EtcdConfig
    identity: IdentityConfig
    timing: TimingConfig = attrs.field(factory=TimingConfig)
    fence_mode: FenceKind = FenceKind.PERMIT
    application_role: str = ""
    """With `fence_mode: rbac`, the role of etcd that the applications of this cluster have."""
    metrics: HostPort | None = None
    spool: SpoolConfig | None = None
    """Without it, a standby that is away for longer than etcd keeps history is copied."""
    compactor: CompactorConfig | None = None
    """Without it MeshKit compacts nothing: etcd's own settings decide."""
    log: LogConfig = attrs.field(factory=LogConfig)
    limits: LimitsConfig = attrs.field(factory=LimitsConfig)

    def __attrs_post_init__(self) -> None:
        if (self.fence_mode is FenceKind.RBAC) != bool(self.application_role):
            raise ValueError("application_role: belongs to fence_mode: rbac, which needs it")


@attrs.frozen(kw_only=True)
class CoordinatorConfig:
    """One coordinator process."""

    name: str
    listen: HostPort
    """Where the automation API is served."""
    coordination_etcd: EtcdConfig
    identity: IdentityConfig
    timing: TimingConfig = attrs.field(factory=TimingConfig)
    metrics: HostPort | None = None
    log: LogConfig = attrs.field(factory=LogConfig)


def load_replicator_config(
    path: Path, *, environ: Mapping[str, str] = os.environ
) -> ReplicatorConfig:
    """Return a replicator's configuration.

    Raises:
        InvalidConfig: says file, line, field and what was expected.
    """
    config = load_record(ReplicatorConfig, path)
    etcds = (config.regional_etcd, config.coordination_etcd)
    check_files(path, identity=config.identity, etcds=etcds, environ=environ)
    return config


def load_coordinator_config(
    path: Path, *, environ: Mapping[str, str] = os.environ
) -> CoordinatorConfig:
    """Return a coordinator's configuration.

    Raises:
        InvalidConfig: says file, line, field and what was expected.
    """
    config = load_record(CoordinatorConfig, path)
    etcds = (config.coordination_etcd,)
    check_files(path, identity=config.identity, etcds=etcds, environ=environ)
    return config


def check_files(
    source: Path,
    *,
    identity: IdentityConfig,
    etcds: Iterable[EtcdConfig],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Check that every file named is there and that secrets are private.

    Raises:
        InvalidConfig: names each file that is missing or readable by others.
    """
    public = [identity.ca, identity.cert]
    secret = [identity.key]
    for etcd in etcds:
        public += [p for p in (etcd.ca, etcd.cert) if p is not None]
        secret += [p for p in (etcd.key, etcd.password_file) if p is not None]
    problems = [f"{path} does not exist" for path in (*public, *secret) if not path.is_file()]
    for path in dict.fromkeys(secret):
        try:
            check_private(path, environ=environ)
        except InvalidConfig as error:
            problems.append(str(error))
    if problems:
        raise InvalidConfig("\n".join(f"{source}: {p}" for p in dict.fromkeys(problems)))


def check_private(path: Path, *, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a secret that other users of this machine can read or change.

    Raises:
        InvalidConfig: it is; says how to make it private.
    """
    if environ.get(ALLOW_READABLE_KEYS) == "1" or not path.is_file():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        raise InvalidConfig(
            f"{path} has mode {mode:04o}: others can read this secret (chmod 600 {path},"
            f" or set {ALLOW_READABLE_KEYS}=1)"
        )


def _check_endpoint(endpoint: str, *, allow_plaintext: bool) -> None:
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path:
        raise ValueError(f"endpoints: expected https://host:port, found {endpoint!r}")
    if parts.scheme == "http" and not allow_plaintext:
        raise ValueError(
            f"endpoints: {endpoint!r} is not TLS; use https, or say allow_plaintext: true"
        )
