"""One coordinator process: the automation API, and leadership whenever it is elected."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog

from coordinator.api.app import Api, identify_by_tls
from coordinator.leadership import Candidate, Leadership
from fencing.election import Election
from fencing.timing import Timing, timing_of
from meshkit.clock import Clock, SystemClock
from meshkit.config import CoordinatorConfig, HostPort, IdentityConfig
from meshkit.connect import connect_etcd
from meshkit.identity import IdentityFiles
from meshkit.keys import CoordinationKeys
from meshkit.peer_channel import GrpcAsker
from meshkit.serving import listening
from meshkit.store.port import Store

_log = structlog.get_logger()


async def run(config: CoordinatorConfig) -> None:
    """Run a coordinator until cancelled; then answer what was asked, and resign.

    Raises:
        InvalidConfig: a file cannot be read, or the address cannot be listened at.
    """
    clock = SystemClock()
    timing = timing_of(config.timing.profile.value, config.timing.overrides())
    store = connect_etcd(config.coordination_etcd, clock=clock)
    election = Election(
        store=store,
        key=CoordinationKeys.coordinator_leader,
        value=config.name.encode(),
        ttl_s=timing.leader_ttl_s,
        clock=clock,
    )
    try:
        await serve(
            store,
            election,
            clock=clock,
            listen=config.listen,
            identity=files_of(config.identity),
            metrics=config.metrics,
            coordination_ttl_ms=timing.coordination_ttl_ms,
        )
    finally:
        await store.close()


async def serve(
    store: Store,
    election: Candidate,
    *,
    clock: Clock,
    listen: HostPort,
    identity: IdentityFiles,
    metrics: HostPort | None = None,
    coordination_ttl_ms: int = Timing().coordination_ttl_ms,
) -> None:
    """Serve the API and lead when elected, until cancelled.

    `metrics` is served without TLS, for scrapers that have no certificate: bind it to an address
    that only they reach.
    """
    leadership = Leadership(store=store, election=election, clock=clock)
    api = Api(
        store=store,
        clock=clock,
        identify=identify_by_tls(identity.trust_domain),
        is_leading=lambda: leadership.is_leading,
        coordination_ttl_ms=coordination_ttl_ms,
        asker=GrpcAsker(identity),
    )
    async with AsyncExitStack() as opened:
        port = await opened.enter_async_context(listening(api.application(), listen, identity))
        if metrics is not None:
            await opened.enter_async_context(listening(api.metrics_only(), metrics, None))
        _log.info("coordinator.started", host=listen.host, port=port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leadership.run())


def files_of(config: IdentityConfig) -> IdentityFiles:
    """Return the identity that a configuration names."""
    return IdentityFiles(
        ca=config.ca, cert=config.cert, key=config.key, trust_domain=config.trust_domain
    )
