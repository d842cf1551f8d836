"""What a harness knows of an etcd that has ended: whether somebody ended it, or it fell over."""

from collections.abc import Callable

import attrs
import pytest

from cli.sandbox.etcd import EtcdProcess
from meshkit.etcd_binary import EtcdBinary

pytestmark = pytest.mark.etcd


def test_one_that_was_killed_or_stopped_has_not_crashed(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    etcd = start_etcd(etcd_binary)
    running = etcd.has_crashed
    etcd.kill()
    killed = etcd.has_crashed
    etcd.start()
    etcd.wait_ready()
    etcd.stop()

    assert (running, killed, etcd.has_crashed) == (False, False, False)


def test_one_that_ends_by_itself_has_crashed(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    etcd = start_etcd(etcd_binary)
    etcd.stop()
    etcd.flags = attrs.evolve(etcd.flags, extra=("--there-is-no-such-flag",))
    etcd.start()
    assert etcd._process is not None
    etcd._process.wait(timeout=60)

    assert etcd.has_crashed
