"""What limits a figure is said from CPU times, and only what they show."""

import os

import pytest

from bench.busy import Busy, cpu_s, told


@pytest.mark.parametrize(
    ("cores", "limit"),
    [
        ({"replicators of a": 0.99, "etcd of b": 0.95}, "the machine's 2 cores"),
        ({"replicators of a": 0.97, "etcd of b": 0.1}, "one thread of replicators of a"),
        ({"replicators of a": 0.4, "etcd of b": 0.2}, "waiting, not CPU time"),
    ],
)
def test_the_limit_is_whoever_had_no_more_to_give(cores: dict[str, float], limit: str) -> None:
    assert told(cores, 2).startswith(f"limit: {limit} (")


def test_a_process_that_worked_is_seen_to_have_worked() -> None:
    busy = Busy({"us": [os.getpid()]})
    before = cpu_s(os.getpid())
    while cpu_s(os.getpid()) < before + 0.05:
        pass

    assert busy.cores()["us"] > 0
    assert busy.per(1, "thing").endswith("us of CPU per thing")


def test_a_process_that_is_gone_took_nothing() -> None:
    assert cpu_s(2**22 + 1) == 0.0
