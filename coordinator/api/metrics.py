"""Metrics of one coordinator process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from coordinator.api.automatic_metrics import AutomaticMetrics
from coordinator.api.routes import Route


class Metrics:
    """Its own registry, so that tests and several services in one process do not meet."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._leading = Gauge(
            "mesh_coordinator_leading", "1 while this process leads.", registry=self.registry
        )
        self._requests = Counter(
            "mesh_api_requests_total",
            "Requests answered, by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._lag = Gauge(
            "mesh_replication_lag_seconds",
            "Age of the oldest source commit the target has not applied; absent when unknown.",
            ["source", "target"],
            registry=self.registry,
        )
        self._known = Gauge(
            "mesh_replication_lag_known",
            "1 if the lag is known.",
            ["source", "target"],
            registry=self.registry,
        )

        copy = ["group", "target"]
        self._verified_age = Gauge(
            "mesh_verify_age_seconds",
            "How long ago the copy was compared with its source; absent if it never was.",
            copy,
            registry=self.registry,
        )
        self._verified_equal = Gauge(
            "mesh_verify_equal",
            "1 if the copy was equal when it was compared last, or was made equal then.",
            copy,
            registry=self.registry,
        )
        self._differing = Gauge(
            "mesh_verify_differing_keys",
            "Keys that differed when the copy was compared last; absent if it could not be.",
            copy,
            registry=self.registry,
        )

        self._automatic = AutomaticMetrics(self.registry)

    def count_request(self, route: Route, status: int) -> None:
        """Count one request."""
        self._requests.labels(method=route.method, route=route.path, status=str(status)).inc()

    def exposition(
        self,
        *,
        is_leading: bool,
        streams: Iterable[Mapping[str, Any]],
        automatic: Iterable[Mapping[str, Any]] = (),
        now_ms: int = 0,
    ) -> bytes:
        """Return everything in Prometheus' text format, with the lag as reported now."""
        self._leading.set(1 if is_leading else 0)
        for gauge in (self._lag, self._known):
            gauge.clear()
        for gauge in (self._verified_age, self._verified_equal, self._differing):
            gauge.clear()
        for stream in streams:
            labels = {"source": stream["source"], "target": stream["target"]}
            self._known.labels(**labels).set(0 if stream["lag_ms"] is None else 1)
            if stream["lag_ms"] is not None:
                self._lag.labels(**labels).set(stream["lag_ms"] / 1000)
            for result in stream["last_verify"]:
                self._tell_verified(result, now_ms=now_ms)
        self._automatic.tell(automatic)
        return generate_latest(self.registry)

    def _tell_verified(self, result: Mapping[str, Any], *, now_ms: int) -> None:
        labels = {"group": result["group"], "target": result["target"]}
        outcome = result["outcome"]
        age_ms = max(0, now_ms - result["ended_ms"])
        self._verified_age.labels(**labels).set(age_ms / 1000)
        self._verified_equal.labels(**labels).set(outcome in {"equal", "repaired"})
        if outcome != "refused":
            self._differing.labels(**labels).set(result["differing"])
