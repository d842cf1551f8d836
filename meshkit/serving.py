"""Serves an aiohttp application over HTTP, with mutual TLS or without any."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from meshkit.config import HostPort
from meshkit.errors import InvalidConfig
from meshkit.identity import IdentityFiles

_log = structlog.get_logger()

SHUTDOWN_TIMEOUT_MS = 2_000
"""How long requests under way may take when the server stops."""


@asynccontextmanager
async def listening(
    app: web.Application, listen: HostPort, identity: IdentityFiles | None
) -> AsyncIterator[int]:
    """Serve an application inside the block; gives the port it listens at.

    With mutual TLS, or with none if there is no identity.

    Raises:
        InvalidConfig: a file cannot be read, or the address cannot be listened at.
    """
    runner = web.AppRunner(
        app, shutdown_timeout=SHUTDOWN_TIMEOUT_MS / 1000, handler_cancellation=True
    )
    await runner.setup()
    try:
        tls = identity.server_context() if identity else None
        site = web.TCPSite(runner, listen.host, listen.port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise InvalidConfig(f"cannot listen at {listen}: {error.strerror}") from error
        host, port = runner.addresses[0][:2]
        _log.debug("http.listening", host=host, port=port)
        yield int(port)
    finally:
        await runner.cleanup()
