"""What etcd says of its fsyncs, as a benchmark tells it."""

from __future__ import annotations

from bench.disk import Fsyncs

BEFORE = """
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 10
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 10
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 10
etcd_disk_wal_fsync_duration_seconds_sum 0.005
"""
AFTER = """
# HELP etcd_disk_wal_fsync_duration_seconds The latency distributions of fsync called by WAL.
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 1000
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 1009
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 1.01e+03
etcd_disk_wal_fsync_duration_seconds_sum 2.005
etcd_disk_wal_fsync_duration_seconds_count 1010
"""


def test_only_what_came_since_is_told() -> None:
    found = Fsyncs.parse(AFTER.splitlines()).since(Fsyncs.parse(BEFORE.splitlines()))

    assert found.count == 1_000
    assert found.mean_ms == 2.0
    assert found.at_most_ms(0.99) == 1
    assert found.told() == "1,000, mean 2.0 ms, p99 <= 1 ms, max <= inf ms"


def test_an_etcd_that_does_not_answer_tells_of_none() -> None:
    assert Fsyncs.parse([]).told() == "none"
