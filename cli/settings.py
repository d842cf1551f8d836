"""Where the API is and who we are to it: flags, then MESH_* variables, then the contexts file."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from cli.options import duration_ms
from meshkit.config import check_private
from meshkit.errors import InvalidConfig, NotFound
from meshkit.yaml_records import load_record

REQUEST_TIMEOUT_MS = 10_000
FOLLOW_TIMEOUT_MS = 60_000


class OutputForm(enum.Enum):
    """How results are written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@attrs.frozen(kw_only=True)
class ContextConfig:
    """One mesh as seen from this machine."""

    api: tuple[str, ...]
    ca: Path
    cert: Path
    key: Path

    def __attrs_post_init__(self) -> None:
        if not self.api:
            raise ValueError("api: at least one URL is needed")


@attrs.frozen(kw_only=True)
class ContextsFile:
    """What `config.yaml` holds."""

    contexts: Mapping[str, ContextConfig] = attrs.field(factory=dict)
    current_context: str | None = None
    output: OutputForm = OutputForm.TABLE


@attrs.frozen
class Setting:
    """A value in force and where it came from."""

    value: Any
    origin: str


@attrs.frozen(kw_only=True)
class Settings:
    """Every setting in force, with its origin."""

    values: Mapping[str, Setting]

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    @property
    def output(self) -> OutputForm:
        """How results are written."""
        return OutputForm(self["output"])

    def timeout_ms(self, default_ms: int = REQUEST_TIMEOUT_MS) -> int:
        """Return how long to wait, or `default_ms` when nobody said."""
        value = self["timeout"]
        return default_ms if value is None else int(value)

    def require_api(self) -> ContextConfig:
        """Return where the API is and who we are to it.

        Raises:
            InvalidConfig: something of it is not set; says how to set it.
        """
        missing = [name for name in ("api", "ca", "cert", "key") if not self[name]]
        if missing:
            raise InvalidConfig(
                f"not configured: {', '.join(missing)}",
                hint="start a sandbox (mesh sandbox up), name a context in"
                f" {self['config']}, or set "
                + ", ".join(f"MESH_{name.upper()}" for name in missing),
            )
        check_private(self["key"])
        for name in ("ca", "cert", "key"):
            if not self[name].is_file():
                raise InvalidConfig(
                    f"{name}: {self[name]} does not exist", hint=self.values[name].origin
                )
        return ContextConfig(api=self["api"], ca=self["ca"], cert=self["cert"], key=self["key"])


def config_home(environ: Mapping[str, str]) -> Path:
    """Return MeshKit's folder for configuration (XDG)."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "meshkit"


def state_home(environ: Mapping[str, str]) -> Path:
    """Return MeshKit's folder for state (XDG)."""
    home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "meshkit"


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in force.

    Raises:
        InvalidConfig: the contexts file or a variable is wrong.
        NotFound: the context asked for is not in the file.
    """
    environ = os.environ if environ is None else environ
    config = _first(flags, environ, "config", default=str(_default_file(environ)))
    path = Path(config.value).expanduser()
    file, file_origin = _contexts_file(path, is_named=config.origin != "default")
    values = {"config": Setting(path, config.origin)}
    values["context"] = _first(flags, environ, "context", default=None)
    if values["context"].value is None and file.current_context:
        values["context"] = Setting(file.current_context, file_origin)
    context = _context(file, values["context"].value, path)
    for name in ("api", "ca", "cert", "key"):
        from_file = getattr(context, name) if context else None
        setting = _first(flags, environ, name, default=from_file)
        if setting.origin == "default" and context is not None:
            setting = Setting(setting.value, f"{file_origin} (context {values['context'].value})")
        values[name] = Setting(_shaped(name, setting.value), setting.origin)
    values["output"] = _output(_first(flags, environ, "output", default=None), file, file_origin)
    values["timeout"] = _timeout(_first(flags, environ, "timeout", default=None))
    return Settings(values=values)


def load_contexts(path: Path) -> ContextsFile:
    """Return the contexts in a file.

    Raises:
        InvalidConfig: says what is wrong with it, and where.
    """
    file = load_record(ContextsFile, path)
    if file.current_context is not None and file.current_context not in file.contexts:
        raise InvalidConfig(
            f"{path}: current_context: there is no context {file.current_context!r};"
            f" there are: {', '.join(file.contexts) or 'none'}"
        )
    return file


def _default_file(environ: Mapping[str, str]) -> Path:
    """Return the person's own contexts file, or else that of the default sandbox."""
    own = config_home(environ) / "config.yaml"
    of_sandbox = state_home(environ) / "sandbox" / "config.yaml"
    return of_sandbox if of_sandbox.is_file() and not own.is_file() else own


def _contexts_file(path: Path, *, is_named: bool) -> tuple[ContextsFile, str]:
    if path.is_file() or is_named:
        return load_contexts(path), f"file {path}"
    return ContextsFile(), "default"


def _context(file: ContextsFile, name: str | None, path: Path) -> ContextConfig | None:
    if name is None:
        return None
    if name not in file.contexts:
        raise NotFound(
            f"there is no context {name!r} in {path}",
            hint=f"there are: {', '.join(sorted(file.contexts)) or 'none'}",
        )
    return file.contexts[name]


def _first(
    flags: Mapping[str, Any], environ: Mapping[str, str], name: str, *, default: Any
) -> Setting:
    if flags.get(name):
        return Setting(flags[name], f"flag --{name}")
    variable = f"MESH_{name.upper()}"
    if environ.get(variable):
        return Setting(environ[variable], f"environment {variable}")
    return Setting(default, "default")


def _shaped(name: str, value: Any) -> Any:
    if name == "api":
        urls = value.split(",") if isinstance(value, str) else value or ()
        return tuple(url.strip().rstrip("/") for url in urls)
    return Path(value).expanduser() if value else None


def _output(setting: Setting, file: ContextsFile, file_origin: str) -> Setting:
    if setting.value is None:
        return Setting(file.output.value, file_origin)
    if setting.value not in {form.value for form in OutputForm}:
        raise InvalidConfig(
            f"{setting.origin}: expected table, json or yaml, found {setting.value!r}"
        )
    return setting


def _timeout(setting: Setting) -> Setting:
    if isinstance(setting.value, str):
        try:
            return Setting(duration_ms(setting.value), setting.origin)
        except ValueError as error:
            raise InvalidConfig(f"{setting.origin}: {error}") from error
    return setting
