"""A whole mesh on this machine: for trying it out, for the demo, the tests and the chaos runs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import attrs

from cli.api import MeshApi
from cli.pki import CertificateFiles
from cli.sandbox import plan, readiness
from cli.sandbox.etcd import EtcdCluster, EtcdFlags, EtcdProcess, EtcdServerTls
from cli.sandbox.plan import APPLICATION, OPERATOR, Layout, SandboxSpec
from cli.sandbox.process import MeshProcess
from cli.settings import ContextConfig
from fencing.timing import timing_of
from meshkit.config import EtcdConfig
from meshkit.connect import connect_etcd
from meshkit.errors import Conflict, InvalidInput, NotFound
from meshkit.etcd_binary import EtcdBinary, find_etcd
from meshkit.store.etcd import EtcdStore

START_TIMEOUT_MS = 60_000
STOP_TIMEOUT_MS = 8_000

Report = Callable[[int, int, str], None]
"""Told when a step begins: its number, how many there are, and its name."""

STEPS = (
    "certificates and configuration",
    "coordination etcd",
    "regional etcds",
    "coordinators and replicators",
    "clusters and groups",
    "first permits",
    "streams in step",
)


def _silent(_number: int, _total: int, _name: str) -> None:
    return


@attrs.define(kw_only=True, eq=False)
class Sandbox:
    """Every process of one sandbox, running or not. Its directory is all its memory."""

    layout: Layout
    ports: dict[str, int]
    binary: EtcdBinary
    environ: Mapping[str, str] = attrs.field(factory=dict)
    """Added to the environment of replicators and coordinators (failpoints, log level)."""
    coordination: EtcdCluster = attrs.field(init=False)
    regional: dict[str, EtcdProcess] = attrs.field(init=False)
    replicators: dict[str, list[MeshProcess]] = attrs.field(init=False)
    coordinators: list[MeshProcess] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.coordination = self._coordination()
        self.regional = {c: self._regional(c) for c in self.spec.clusters}
        self.replicators = {
            cluster: [
                self._process("replicator", name, self.layout.cluster_dir(cluster))
                for name in self.layout.replicator_names(cluster)
            ]
            for cluster in self.spec.clusters
        }
        self.coordinators = [
            self._process("coordinator", name, self.layout.coordinators_dir)
            for name in self.layout.coordinator_names()
        ]

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        clusters: tuple[str, ...] | list[str] = ("us-east", "eu-west", "ap-south"),
        groups: Mapping[str, tuple[str, ...]] | None = None,
        binary: EtcdBinary | None = None,
        environ: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Self:
        """Return the sandbox in `directory`, as it was made, or as described if there is none.

        `options` are the other fields of `SandboxSpec`.

        Raises:
            Conflict: there is one of another shape.
            InvalidInput, InvalidConfig, NotFound: the description, the state file, or no etcd.
        """
        spec = SandboxSpec(
            clusters=plan.parse_clusters(",".join(clusters)),
            groups=plan.parse_groups(
                [f"{n}={','.join(p)}" for n, p in (groups or {"orders": ("/orders/",)}).items()]
            ),
            **options,
        )
        timing_of(spec.timing)
        directory = directory.absolute()
        saved = plan.load_state(directory)
        if saved is not None and _shape(saved[0]) != _shape(spec):
            raise Conflict(
                f"there is another sandbox in {directory}: clusters {', '.join(saved[0].clusters)},"
                f" {saved[0].coordination_members} coordination member(s)",
                hint="give another --dir, or remove it: mesh sandbox down --purge",
            )
        layout = Layout(directory=directory, spec=spec)
        ports = dict(saved[1]) if saved is not None else {}
        if set(layout.port_names()) - ports.keys():
            ports = plan.chosen_ports(layout, ports)
        return cls(layout=layout, ports=ports, binary=binary or find_etcd(), environ=environ or {})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Return the sandbox in `directory`.

        Raises:
            NotFound: there is none.
        """
        directory = directory.absolute()
        saved = plan.load_state(directory)
        if saved is None:
            raise NotFound(f"there is no sandbox in {directory}", hint="mesh sandbox up")
        layout = Layout(directory=directory, spec=saved[0])
        return cls(layout=layout, ports=saved[1], binary=find_etcd())

    @property
    def spec(self) -> SandboxSpec:
        """What it consists of."""
        return self.layout.spec

    @property
    def directory(self) -> Path:
        """Where everything of it is."""
        return self.layout.directory

    def etcd(self, cluster: str) -> EtcdProcess:
        """Return a cluster's etcd."""
        return self.regional[cluster]

    def replicator(self, cluster: str, index: int = 1) -> MeshProcess:
        """Return a cluster's replicator, counted from 1."""
        return self.replicators[cluster][index - 1]

    def coordinator(self, index: int = 1) -> MeshProcess:
        """Return a coordinator, counted from 1."""
        return self.coordinators[index - 1]

    def mesh_processes(self) -> Iterator[MeshProcess]:
        """Return every replicator and coordinator."""
        yield from self.coordinators
        for members in self.replicators.values():
            yield from members

    def etcd_processes(self) -> Iterator[EtcdProcess]:
        """Return every etcd member."""
        yield from self.coordination.members
        yield from self.regional.values()

    def running(self) -> list[str]:
        """Return the names of the processes that run."""
        everything: list[MeshProcess | EtcdProcess] = [
            *self.mesh_processes(),
            *self.etcd_processes(),
        ]
        return [process.name for process in everything if process.is_running]

    def certificate(self, role: str, name: str) -> CertificateFiles:
        """Return where a certificate of this sandbox is."""
        return plan.certificate(self.layout, role, name)

    def context(self) -> ContextConfig:
        """Return where the API is, and the operator's certificate."""
        files = self.certificate(*OPERATOR)
        urls = [f"https://127.0.0.1:{self.ports[f'{c.name}:api']}" for c in self.coordinators]
        return ContextConfig(api=tuple(urls), ca=files.ca, cert=files.cert, key=files.key)

    def api(self, *, timeout_ms: int = 10_000) -> MeshApi:
        """Return a session with the automation API as the operator, to be entered."""
        return MeshApi(self.context(), timeout_ms=timeout_ms)

    def etcd_config(self, cluster: str | None = None) -> EtcdConfig:
        """Return how an application reaches a cluster's etcd; None: the coordination etcd.

        The coordination etcd is reached as the operator.
        """
        files = self.certificate(*(OPERATOR if cluster is None else APPLICATION))
        endpoints = (
            plan.coordination_endpoints(self.layout, self.ports)
            if cluster is None
            else [plan.regional_endpoint(self.ports, cluster)]
        )
        return EtcdConfig(endpoints=tuple(endpoints), ca=files.ca, cert=files.cert, key=files.key)

    def store(self, cluster: str | None = None) -> EtcdStore:
        """Return a new store on a cluster's etcd; None: on the coordination etcd. Close it."""
        return connect_etcd(self.etcd_config(cluster))

    async def start_stores(
        self, *, report: Report = _silent, timeout_ms: int = START_TIMEOUT_MS
    ) -> None:
        """Start only the etcds: to load what is there before MeshKit comes. Then `start` the rest.

        Raises:
            Unreachable: an etcd did not get ready.
        """
        report(1, len(STEPS), STEPS[0])
        await asyncio.to_thread(self._prepare)
        report(2, len(STEPS), STEPS[1])
        await asyncio.to_thread(_start_etcds, self.coordination.members, timeout_ms)
        report(3, len(STEPS), STEPS[2])
        await asyncio.to_thread(_start_etcds, list(self.regional.values()), timeout_ms)

    async def start(self, *, report: Report = _silent, timeout_ms: int = START_TIMEOUT_MS) -> None:
        """Start what does not run, and wait until writes are accepted and all copies follow.

        Raises:
            NotReady, Unreachable: something did not get ready, or ended; says what and why.
        """
        if not all(member.is_running for member in self.etcd_processes()):
            await self.start_stores(report=report, timeout_ms=timeout_ms)
        report(4, len(STEPS), STEPS[3])
        for process in self.mesh_processes():
            if not process.is_running:
                process.start()
        self.save()
        ready = readiness.Readiness(sandbox=self, timeout_ms=timeout_ms)
        async with self.api() as api:
            await ready.coordinators(api)
            report(5, len(STEPS), STEPS[4])
            await ready.applied(api)
            report(6, len(STEPS), STEPS[5])
            await ready.permits(api)
            report(7, len(STEPS), STEPS[6])
            await ready.streams(api)
        self.save()

    async def stop(self, *, timeout_ms: int = STOP_TIMEOUT_MS) -> None:
        """End every process of this sandbox: in an orderly way, by force after `timeout_ms`."""
        await asyncio.to_thread(self._stop, timeout_ms / 1000)
        if self.directory.is_dir():
            self.save()

    def purge(self) -> None:
        """Delete everything of this sandbox.

        Raises:
            Conflict: some of it still runs.
        """
        if self.running():
            raise Conflict(f"still running: {', '.join(self.running())}", hint="mesh sandbox down")
        if not (self.directory / plan.STATE_FILE).is_file():
            raise InvalidInput(f"{self.directory} holds no sandbox")
        shutil.rmtree(self.directory)

    def save(self) -> None:
        """Write the state file."""
        plan.save_state(self.layout, self.ports, self.describe())

    def describe(self) -> dict[str, Any]:
        """Return endpoints, certificates, pids and log files, by cluster."""
        application, operator = self.certificate(*APPLICATION), self.certificate(*OPERATOR)
        return {
            "directory": str(self.directory),
            "context_file": str(self.layout.context_file),
            "api": list(self.context().api),
            "ca": str(operator.ca),
            "operator": {"cert": str(operator.cert), "key": str(operator.key)},
            "application": {"cert": str(application.cert), "key": str(application.key)},
            "groups": {name: list(prefixes) for name, prefixes in self.spec.groups.items()},
            "coordination": {
                "endpoints": plan.coordination_endpoints(self.layout, self.ports),
                "members": [_described(member) for member in self.coordination.members],
            },
            "coordinators": [
                _described(process)
                | {"api": f"https://127.0.0.1:{self.ports[process.name + ':api']}"}
                for process in self.coordinators
            ],
            "clusters": {cluster: self._described(cluster) for cluster in self.spec.clusters},
        }

    def _described(self, cluster: str) -> dict[str, Any]:
        files = self.certificate(*APPLICATION)
        return {
            "endpoints": [plan.regional_endpoint(self.ports, cluster)],
            "ca": str(files.ca),
            "cert": str(files.cert),
            "key": str(files.key),
            "etcd": _described(self.regional[cluster]),
            "replicators": [
                _described(process)
                | {
                    "replication": f"127.0.0.1:{self.ports[process.name + ':replication']}",
                    "metrics": f"127.0.0.1:{self.ports[process.name + ':metrics']}",
                }
                for process in self.replicators[cluster]
            ],
        }

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.running():
            ports = plan.chosen_ports(self.layout, self.ports)
            if ports != self.ports:
                self.ports = ports
                self.__attrs_post_init__()
        plan.make_certificates(self.layout)
        plan.write_configs(self.layout, self.ports)
        self.save()

    def _stop(self, timeout_s: float) -> None:
        for process in self.mesh_processes():
            process.terminate()
        for process in self.mesh_processes():
            process.stop(timeout_s=timeout_s)
        for member in self.etcd_processes():
            member.stop(timeout_s=timeout_s)

    def _process(self, kind: str, name: str, directory: Path) -> MeshProcess:
        return MeshProcess(
            name=name,
            command=(kind, "run", "-f", str(directory / f"{name}.yaml")),
            directory=directory,
            environ=self.environ,
        )

    def _coordination(self) -> EtcdCluster:
        names = self.layout.coordination_names()
        members = [
            self._etcd(name, self.layout.coordination_dir / name, server="coordination")
            for name in names
        ]
        initial = ",".join(f"{member.name}={member.peer_url}" for member in members)
        for member in members:
            member.initial_cluster = initial
            member.cluster_token = "mesh-sandbox"  # noqa: S105 etcd's name for it, not a secret
        return EtcdCluster(members=members)

    def _regional(self, cluster: str) -> EtcdProcess:
        name = f"{cluster}-etcd"
        return self._etcd(name, self.layout.cluster_dir(cluster) / "etcd", server=cluster)

    def _etcd(self, name: str, directory: Path, *, server: str) -> EtcdProcess:
        files = self.certificate("etcd", server)
        election_ms = timing_of(self.spec.timing).election_timeout_ms
        return EtcdProcess(
            binary=self.binary,
            directory=directory,
            name=name,
            flags=EtcdFlags(
                heartbeat_ms=election_ms // 10,
                election_ms=election_ms,
                is_fsync_off=self.spec.is_fsync_off,
                tls=EtcdServerTls(
                    cert=files.cert, key=files.key, trusted_ca=files.ca, demands_client_cert=True
                ),
            ),
            client_port=self.ports[f"{name}:client"],
            peer_port=self.ports[f"{name}:peer"],
            metrics_port=self.ports[f"{name}:metrics"],
        )


def _shape(spec: SandboxSpec) -> tuple[object, ...]:
    """Return what may not change between two runs on the same directory."""
    return (spec.clusters, spec.coordination_members)


def _start_etcds(members: list[EtcdProcess], timeout_ms: int) -> None:
    for member in members:
        if not member.is_running:
            member.start()
    for member in members:
        member.wait_ready(timeout_s=timeout_ms / 1000)


def _described(process: MeshProcess | EtcdProcess) -> dict[str, Any]:
    return {"name": process.name, "pid": process.pid, "log": str(process.log_file)}
