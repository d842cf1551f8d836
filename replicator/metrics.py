"""What a replicator process tells Prometheus, evaluated when it is asked.

Unknown is absent, never zero: a lag that is not known has no sample, and
`mesh_replication_lag_known` says 0. Only the leading replicator of a region has samples beyond
`mesh_replicator_leading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from meshkit.names import ClusterName, GroupName
from meshkit.quarantine import QuarantineClass
from meshkit.status import GroupHealth, StreamState, StreamStatus, WhyBehind


@attrs.frozen(kw_only=True)
class Reading:
    """What the leading replicator knows at this moment."""

    cluster: ClusterName
    streams: Sequence[StreamStatus]
    groups: dict[GroupName, GroupHealth]
    foreign_writes: int
    leases_problem: str
    spool_bytes: int | None = None
    compacted_revision: int | None = None
    kept: Sequence[GroupName] = ()
    """Groups whose writes go on by promise."""


class ReplicatorCollector(Collector):
    """Turns a reading into samples; None: this process stands by."""

    def __init__(self, read: Callable[[], Reading | None]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: the samples depend on who leads."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every sample, evaluated now."""
        reading = self._read()
        yield GaugeMetricFamily(
            "mesh_replicator_leading", "1 while this process leads its region.", int(bool(reading))
        )
        if reading is not None:
            yield from _of_streams(reading)
            yield from _of_groups_behind(reading.streams)
            yield from _of_groups(reading)


def _of_streams(reading: Reading) -> Iterator[Metric]:
    pair = ["source", "target"]
    lag = GaugeMetricFamily(
        "mesh_replication_lag_seconds",
        "Age of the oldest source commit the target has not applied; absent when unknown.",
        labels=pair,
    )
    bound = GaugeMetricFamily(
        "mesh_replication_lag_error_bound_seconds", "How far off the lag may be.", labels=pair
    )
    known = GaugeMetricFamily("mesh_replication_lag_known", "1 if the lag is known.", labels=pair)
    records = GaugeMetricFamily(
        "mesh_replication_lag_records", "Records the target has not applied.", labels=pair
    )
    size = GaugeMetricFamily(
        "mesh_replication_lag_bytes",
        "Keys and values of the records the target has not applied.",
        labels=pair,
    )
    rate = GaugeMetricFamily(
        "mesh_replication_records_per_second", "Records the target applies now.", labels=pair
    )
    head = GaugeMetricFamily(
        "mesh_replication_source_sequence", "The newest revision of the source.", labels=pair
    )
    applied = GaugeMetricFamily(
        "mesh_replication_applied_sequence", "Up to where the target has applied.", labels=pair
    )
    state = GaugeMetricFamily(
        "mesh_replication_state", "1 for the state the stream is in.", labels=[*pair, "state"]
    )
    headroom = GaugeMetricFamily(
        "mesh_replication_history_headroom_seconds",
        "How long until the source compacts away where the target is; absent when unknown.",
        labels=pair,
    )
    spooled = GaugeMetricFamily(
        "mesh_replication_spooled",
        "1 if the source's spool holds all that the target has not stored.",
        labels=pair,
    )
    for stream in reading.streams:
        labels = [stream.source, stream.target]
        known.add_metric(labels, int(stream.lag.lag_ms is not None))
        head.add_metric(labels, stream.head)
        for each in StreamState:
            state.add_metric([*labels, each.value], int(each is stream.lag.state))
        if stream.lag.lag_ms is not None:
            lag.add_metric(labels, stream.lag.lag_ms / 1000)
        if stream.lag.error_bound_ms is not None:
            bound.add_metric(labels, stream.lag.error_bound_ms / 1000)
        if stream.lag.records is not None:
            records.add_metric(labels, stream.lag.records)
        if stream.lag.bytes is not None:
            size.add_metric(labels, stream.lag.bytes)
        rate.add_metric(labels, stream.records_per_second)
        if stream.applied is not None:
            applied.add_metric(labels, stream.applied)
        if stream.headroom_ms is not None:
            headroom.add_metric(labels, stream.headroom_ms / 1000)
        spooled.add_metric(labels, int(stream.is_spooled))
    yield from (lag, bound, known, records, size, rate, head, applied, state, headroom, spooled)


def _of_groups_behind(streams: Sequence[StreamStatus]) -> Iterator[Metric]:
    """Yield what is known of the groups out of step: so many series, and no more."""
    labels = ["source", "target", "group"]
    lag = GaugeMetricFamily(
        "mesh_replication_group_lag_seconds",
        "The lag of a group that is out of step; absent when unknown, and of groups in step.",
        labels=labels,
    )
    out = GaugeMetricFamily(
        "mesh_replication_group_out_of_step",
        "1 for a group that is out of step, by why it is.",
        labels=[*labels, "why"],
    )
    for stream in streams:
        whys = {one.group: one.why for one in stream.behind}
        for group in stream.groups_out_of_step:
            values = [stream.source, stream.target, group]
            out.add_metric([*values, whys.get(group, WhyBehind.UNKNOWN.value)], 1)
            lag_ms = stream.lag_of(group).lag_ms
            if lag_ms is not None:
                lag.add_metric(values, lag_ms / 1000)
    yield from (lag, out)


def _of_groups(reading: Reading) -> Iterator[Metric]:
    labels = ["cluster", "group"]
    epoch = GaugeMetricFamily(
        "mesh_group_epoch", "The epoch the fence of the group is in here.", labels=labels
    )
    permit = GaugeMetricFamily(
        "mesh_group_permit", "1 while writes of the group are accepted here.", labels=labels
    )
    kept = GaugeMetricFamily(
        "mesh_group_kept",
        "1 while writes of the group go on here by promise: the coordination etcd is silent.",
        labels=labels,
    )
    in_step = GaugeMetricFamily(
        "mesh_group_in_step", "1 if the copy here is complete and follows.", labels=labels
    )
    quarantined = GaugeMetricFamily(
        "mesh_quarantine_entries",
        "Writes that lost and wait here for a decision, by class.",
        labels=[*labels, "class"],
    )
    for name, group in sorted(reading.groups.items()):
        values = [reading.cluster, name]
        for kind in QuarantineClass:
            waiting = group.quarantined.get(kind.value, 0)
            quarantined.add_metric([*values, kind.value], waiting)
        epoch.add_metric(values, group.epoch)
        permit.add_metric(values, int(group.permit))
        kept.add_metric(values, int(name in reading.kept))
        in_step.add_metric(values, int(group.in_step))
    yield from (epoch, permit, kept, in_step, quarantined)
    foreign = GaugeMetricFamily(
        "mesh_foreign_writes", "Writes found that bypassed the permit.", labels=["cluster"]
    )
    foreign.add_metric([reading.cluster], reading.foreign_writes)
    yield foreign
    leases = GaugeMetricFamily(
        "mesh_leases_healthy", "1 while the chain of leases is whole.", labels=["cluster"]
    )
    leases.add_metric([reading.cluster], int(not reading.leases_problem))
    yield leases
    if reading.compacted_revision is not None:
        compacted = GaugeMetricFamily(
            "mesh_history_compacted_revision",
            "Up to which revision the region's etcd was seen to be compacted.",
            labels=["cluster"],
        )
        compacted.add_metric([reading.cluster], reading.compacted_revision)
        yield compacted
    if reading.spool_bytes is not None:
        spool = GaugeMetricFamily(
            "mesh_spool_bytes", "What the spool of this process holds.", labels=["cluster"]
        )
        spool.add_metric([reading.cluster], reading.spool_bytes)
        yield spool


def application(read: Callable[[], Reading | None]) -> web.Application:
    """Return an application that serves `/metrics` and `/livez`."""
    registry = CollectorRegistry()
    registry.register(ReplicatorCollector(read))

    async def metrics(_request: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(registry), headers=headers)

    async def live(_request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "leading": read() is not None})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", live)
    return app
