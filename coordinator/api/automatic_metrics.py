"""Metrics of automatic failovers, as every coordinator tells them from what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge


class AutomaticMetrics:
    """Gauges of the groups whose policy has automatic failovers; others have no sample."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge(
            "mesh_automatic_ready",
            "1 if the group would fail over by itself, should its active cluster die now.",
            ["group"],
            registry=registry,
        )
        self._withheld = Gauge(
            "mesh_automatic_withheld",
            "1 while the active cluster is gone and the failover that is due is withheld.",
            ["group"],
            registry=registry,
        )
        self._obstacle = Gauge(
            "mesh_automatic_obstacle",
            "1 for each thing that stands in the way of an automatic failover.",
            ["group", "obstacle"],
            registry=registry,
        )
        self._unacknowledged = Gauge(
            "mesh_automatic_unacknowledged",
            "1 while the last automatic failover waits for a person to acknowledge it.",
            ["group"],
            registry=registry,
        )

    def tell(self, standings: Iterable[Mapping[str, Any]]) -> None:
        """Take in how every group stands."""
        for gauge in (self._ready, self._withheld, self._obstacle, self._unacknowledged):
            gauge.clear()
        for each in standings:
            group, standing = each["group"], each["standing"]
            self._ready.labels(group=group).set(standing == "ready")
            self._withheld.labels(group=group).set(standing == "withheld")
            self._unacknowledged.labels(group=group).set(each["needs_acknowledgement"])
            for reason in each["reasons"]:
                self._obstacle.labels(group=group, obstacle=reason["obstacle"]).set(1)
