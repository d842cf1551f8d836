"""The replicator process: what a configuration describes, wired together and run."""

from __future__ import annotations

import asyncio
import contextlib

import attrs
import structlog

from fencing.election import Election
from fencing.timing import timing_of
from meshkit.clock import Clock, SystemClock
from meshkit.config import FenceKind, ReplicatorConfig
from meshkit.connect import connect_etcd
from meshkit.identity import IdentityFiles
from meshkit.keys import RegionalKeys
from meshkit.peer_channel import GrpcAsker
from meshkit.serving import listening
from meshkit.store.etcd import EtcdStore
from meshkit.store.etcd_roles import EtcdRoles
from replicator import metrics
from replicator.access import AccessFence, NoAccessFence, RoleFence
from replicator.candidate import Replicator
from replicator.compaction import CompactionRule
from replicator.leadership import Home
from replicator.limits import Limits
from replicator.link.grpc import GrpcDialer, GrpcServer
from replicator.spool.files import locked
from replicator.spool.spooler import SpoolSettings

_log = structlog.get_logger()


async def run(config: ReplicatorConfig) -> None:
    """Run a replicator until cancelled.

    Raises:
        InvalidConfig: the lease times do not fit each other, or a file cannot be read, or another
                process has the spool's directory.
    """
    with contextlib.ExitStack() as held:
        if config.spool is not None:
            held.enter_context(locked(config.spool.directory))
        await _serve(config)


async def _serve(config: ReplicatorConfig) -> None:
    clock = SystemClock()
    timing = timing_of(config.timing.profile.value, config.timing.overrides())
    limits = limits_of(config)
    regional = connect_etcd(config.regional_etcd, clock=clock)
    coordination = connect_etcd(config.coordination_etcd, clock=clock)
    identity = IdentityFiles(**attrs.asdict(config.identity, recurse=False))
    dialer = GrpcDialer(identity=identity, limits=limits)
    promise_asker = GrpcAsker(identity, stands=True)
    home = Home(
        cluster=config.cluster,
        replicator=config.name,
        regional=regional,
        coordination=coordination,
        dialer=dialer,
        timing=timing,
        clock=clock,
        limits=limits,
        access=access_of(config, regional, clock),
        asker=GrpcAsker(identity),
        promise_asker=promise_asker,
        certificate_not_after_ms=identity.not_after_ms(),
        spool=spool_of(config),
        compaction=compaction_of(config),
    )
    election = Election(
        store=regional,
        key=RegionalKeys.replicator_leader,
        value=config.name.encode(),
        ttl_s=timing.leader_ttl_s,
        clock=clock,
    )
    replicator = Replicator(home, election)
    server = GrpcServer(
        identity=identity,
        serve=replicator.serve,
        answer=replicator.answer,
        advise=replicator.advise,
        limits=limits,
    )
    try:
        port = await server.start(str(config.listen))
        _log.info("replicator.started", cluster=config.cluster, name=config.name, port=port)
        async with contextlib.AsyncExitStack() as opened:
            if config.metrics is not None:
                app = metrics.application(replicator.reading)
                await opened.enter_async_context(listening(app, config.metrics, None))
            await _run(replicator)
    finally:
        await asyncio.gather(server.stop(), return_exceptions=True)
        await asyncio.gather(
            dialer.close(), promise_asker.close(), regional.close(), coordination.close()
        )


async def _run(replicator: Replicator) -> None:
    """Run until cancelled; then hand the region over to whoever stands by, and end."""
    running = asyncio.ensure_future(replicator.run())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await replicator.hand_over()
        raise
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def access_of(config: ReplicatorConfig, regional: EtcdStore, clock: Clock) -> AccessFence:
    """Return how clients are fenced that do not look at the permit."""
    if config.fence_mode is FenceKind.PERMIT:
        return NoAccessFence()
    return RoleFence(
        roles=EtcdRoles(store=regional),
        role=config.application_role,
        regional=regional,
        clock=clock,
    )


def spool_of(config: ReplicatorConfig) -> SpoolSettings | None:
    """Return the spool that a configuration asks for."""
    given = config.spool
    if given is None:
        return None
    return SpoolSettings(
        directory=given.directory, bytes_max=given.bytes_max, late_ms=given.late_ms
    )


def compaction_of(config: ReplicatorConfig) -> CompactionRule | None:
    """Return the rule of compaction that a configuration asks for."""
    given = config.compactor
    if given is None:
        return None
    return CompactionRule(
        keep_ms=given.keep_ms, hold_ms=given.hold_ms, step_revisions=given.step_revisions
    )


def limits_of(config: ReplicatorConfig) -> Limits:
    """Return the engine's limits that a configuration asks for."""
    given = config.limits
    return Limits(
        frame_bytes_max=given.frame_bytes_max,
        window_bytes_max=given.credit_bytes,
        batch_bytes_max=given.apply_bytes_max,
        page_keys_max=given.copy_page_keys,
        page_bytes_max=given.copy_page_bytes,
        backlog_revisions_max=given.backlog_revisions,
        copy_bytes_per_s_max=given.copy_bytes_per_s,
        checkpoint_idle_ms=given.idle_checkpoint_ms,
        parent_patience_ms=given.parent_patience_ms,
    )
