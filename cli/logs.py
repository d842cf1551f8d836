"""Where log events go: stderr for commands, as configured for the long-running processes."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from meshkit.config import LogConfig, LogFormat, LogLevel
from meshkit.errors import InvalidConfig

_LEVELS = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}
COMMAND = LogConfig(level=LogLevel.ERROR, format=LogFormat.CONSOLE)
"""For commands: results are on stdout and errors are reported, so little is left to log."""


def configure(config: LogConfig, **fields: Any) -> None:
    """Send every event of this process where `config` says, with `fields` in each.

    Raises:
        InvalidConfig: the log file cannot be opened.
    """
    stream = _stream(config)
    if config.format is LogFormat.JSON:
        renderer: Any = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _adder(fields),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


def _adder(fields: dict[str, Any]) -> structlog.typing.Processor:
    def add(
        _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**fields, **event}

    return add


def _stream(config: LogConfig) -> TextIO:
    if config.file is None:
        return sys.stderr
    try:
        config.file.parent.mkdir(parents=True, exist_ok=True)
        return config.file.open("a", buffering=1)
    except OSError as error:
        raise InvalidConfig(f"cannot write the log {config.file}: {error.strerror}") from error
