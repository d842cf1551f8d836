"""The network between the regions of a sandbox, as a set of links that can be cut and healed.

The sandbox has to be one that `is_behind_proxies`: everything its processes reach elsewhere, they
reach through a proxy in this process. Whoever is here (the operator, the clients of a test) is
outside of every region.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterable

import attrs

from chaos.checkers import Judgement, Verdict
from chaos.dialers import process_of
from chaos.proxy import FaultProxy, Link
from cli.sandbox import plan
from cli.sandbox.plan import ANYWHERE, OUTSIDE
from cli.sandbox.sandbox import Sandbox
from meshkit.config import EtcdConfig
from meshkit.connect import connect_etcd
from meshkit.names import ClusterName
from meshkit.store.etcd import EtcdStore

COORDINATION = "coordination"


@attrs.frozen(kw_only=True)
class Outage:
    """Links that were cut together, and what had passed over each until then."""

    passed_before: dict[Link, int]

    def heal(self) -> None:
        """Make them whole again."""
        for link in self.passed_before:
            link.heal()

    def verdict(self, *, needed: Iterable[Link]) -> Verdict:
        """Judge, before it is healed, whether nothing passed while something wanted to."""
        leaks = [
            link.name for link, before in self.passed_before.items() if link.passed_bytes > before
        ]
        idle = [link.name for link in needed if not link.withheld]
        if leaks:
            return Verdict(check="cut", judgement=Judgement.INVALID, detail=f"through: {leaks}")
        judgement = Judgement.UNKNOWN if idle else Judgement.VALID
        held = {link.name: link.withheld for link in self.passed_before if link.withheld}
        return Verdict(check="cut", judgement=judgement, detail=f"withheld {held}, idle {idle}")


@attrs.define(kw_only=True, eq=False)
class Network:
    """Every link between two places: a region, the coordination etcd, and outside."""

    sandbox: Sandbox
    _links: dict[tuple[str, str], Link] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        clusters = self.sandbox.spec.clusters
        pairs = itertools.product((*clusters, OUTSIDE), (*clusters, COORDINATION))
        self._links = {(who, to): Link(name=f"{who} to {to}") for who, to in pairs}

    def link(self, who: str, to: str) -> Link:
        """Return the link for what is dialled by one place at another."""
        return self._links[who, to]

    def around(self, cluster: ClusterName) -> list[Link]:
        """Return every link between a region and anywhere else, whoever dials."""
        return [
            link for ends, link in self._links.items() if (cluster in ends) and len({*ends}) == 2
        ]

    def cut(self, links: Iterable[Link]) -> Outage:
        """Outage links at once, and return them to be healed together."""
        passed = {}
        for link in links:
            link.cut()
            link.withheld = 0
            passed[link] = link.passed_bytes
        return Outage(passed_before=passed)

    def store(self, cluster: ClusterName) -> EtcdStore:
        """Return a new store on a region's etcd, reached from outside. Close it."""
        direct: EtcdConfig = self.sandbox.etcd_config(cluster)
        seen = plan.endpoint_from_elsewhere(self.sandbox.ports, cluster)
        return connect_etcd(attrs.evolve(direct, endpoints=(seen,)))

    def proxies(self) -> list[FaultProxy]:
        """Return a proxy for each port that is reached from elsewhere."""
        layout = self.sandbox.layout
        found = [
            self._proxy(f"{name}:client", COORDINATION, seen_from=place)
            for name in layout.coordination_names()
            for place in (*layout.spec.clusters, OUTSIDE)
        ]
        for cluster in layout.spec.clusters:
            found.append(self._proxy(f"{cluster}-etcd:client", cluster, seen_from=OUTSIDE))
            names = layout.replicator_names(cluster)
            found += [self._proxy(f"{name}:replication", cluster) for name in names]
        return found

    def _proxy(self, port_name: str, to: str, *, seen_from: str = ANYWHERE) -> FaultProxy:
        ports = self.sandbox.ports
        port = ports[plan.proxy_of(port_name, seen_from=seen_from)]

        def dialled_by(dialler: int) -> Link:
            places = self._places()
            pid = process_of(dialler, dialled=port, among=places)
            if pid is None:
                raise LookupError(f"nobody known has dialled {to} from port {dialler}")
            return self.link(places[pid], to)

        async def link_of(dialler: int) -> Link:
            if seen_from == ANYWHERE:
                return await asyncio.to_thread(dialled_by, dialler)
            return self.link(seen_from, to)

        return FaultProxy(port=port, target=ports[port_name], link_of=link_of)

    def _places(self) -> dict[int, str]:
        """Return where each process is."""
        sandbox, home_of = self.sandbox, self.sandbox.layout.home_of_coordinator
        lives = [(process, home_of(process.name)) for process in sandbox.coordinators]
        for cluster, replicators in sandbox.replicators.items():
            lives += [(process, str(cluster)) for process in replicators]
        places = {pid: place for process, place in lives if (pid := process.pid) is not None}
        return {os.getpid(): OUTSIDE, **places}


@contextlib.asynccontextmanager
async def networked(sandbox: Sandbox) -> AsyncIterator[Network]:
    """Run the network of a sandbox; begin once its etcds have been started, and nothing else."""
    network = Network(sandbox=sandbox)
    async with contextlib.AsyncExitStack() as stack:
        for proxy in network.proxies():
            await stack.enter_async_context(proxy)
        yield network
