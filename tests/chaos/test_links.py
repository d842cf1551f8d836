"""The links of a sandbox: which of them lie around a region, and what proves that they were cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.checkers import Judgement
from chaos.links import COORDINATION, Network
from cli.sandbox.plan import OUTSIDE
from cli.sandbox.sandbox import Sandbox
from meshkit.names import ClusterName

A = ClusterName("us-east")


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(sandbox=Sandbox.create(tmp_path / "sandbox", is_behind_proxies=True))


def test_around_a_region_are_all_links_that_cross_its_border(network: Network) -> None:
    """Whoever dials. What goes on inside, and between others, goes on."""
    around = {link.name for link in network.around(A)}

    assert around == {
        "us-east to eu-west",
        "us-east to ap-south",
        "us-east to coordination",
        "eu-west to us-east",
        "ap-south to us-east",
        "outside to us-east",
    }


def test_every_port_that_is_reached_from_elsewhere_has_a_proxy(network: Network) -> None:
    """One that is not would be a way round every cut."""
    ports = network.sandbox.ports
    proxied = {proxy.target for proxy in network.proxies()}

    assert proxied == {
        port for name, port in ports.items() if name.endswith((":client", ":replication"))
    }
    assert not proxied & {proxy.port for proxy in network.proxies()}


async def test_a_cut_through_which_nothing_wanted_to_pass_proves_nothing(network: Network) -> None:
    """And one through which something passed was none."""
    needed = [network.link(A, COORDINATION)]
    cut = network.cut(network.around(A))
    idle = cut.verdict(needed=needed)
    needed[0].withheld += 1
    busy = cut.verdict(needed=needed)
    network.link(OUTSIDE, A).passed_bytes += 1
    leaky = cut.verdict(needed=needed)
    were_cut = {link.is_cut for link in network.around(A)}
    cut.heal()

    assert idle.judgement is Judgement.UNKNOWN
    assert busy.judgement is Judgement.VALID
    assert leaky.judgement is Judgement.INVALID
    assert were_cut == {True}
    assert not any(link.is_cut for link in network.around(A))
