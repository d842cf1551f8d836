"""What a sandbox consists of, and the files its processes read. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import yaml

from cli.pki import LOOPBACK_HOSTS, TRUST_DOMAIN, CertificateFiles, create_ca, issue
from cli.sandbox.ports import free_ports, hold, is_free
from meshkit import names
from meshkit.codec import from_plain, to_plain
from meshkit.errors import Conflict, InvalidConfig, InvalidInput
from meshkit.names import ClusterName, GroupName

STATE_FILE = "state.json"
CONTEXT_FILE = "config.yaml"
CONTEXT = "sandbox"
OPERATOR = ("operator", "sandbox")
APPLICATION = ("application", "sandbox")
OUTSIDE = "outside"
"""Where everybody is who lives in no region."""
ANYWHERE = "anywhere"


@attrs.frozen(kw_only=True)
class SandboxSpec:
    """What to run. Kept in the directory, so that the next `up` resumes it."""

    clusters: tuple[ClusterName, ...]
    groups: Mapping[GroupName, tuple[str, ...]]
    timing: str = "fast"
    coordination_members: int = 1
    replicators: int = 2
    coordinators: int = 2
    is_fsync_off: bool = False
    policy: Mapping[str, int] = attrs.field(factory=dict)
    """Fields of every group's policy that differ from the defaults."""
    is_behind_proxies: bool = False
    """Whether its processes reach each other at ports of their own, on which whoever breaks the
    network has to listen and pass on to the real ones."""

    def __attrs_post_init__(self) -> None:
        if len(set(self.clusters)) != len(self.clusters) or not self.clusters:
            raise InvalidInput("a sandbox needs one or more clusters of different names")
        if not self.groups:
            raise InvalidInput("a sandbox needs a group", hint="--group orders=/orders/")
        if self.coordination_members not in (1, 3, 5):
            raise InvalidInput("the coordination etcd has 1, 3 or 5 members")
        if min(self.replicators, self.coordinators) < 1:
            raise InvalidInput("a sandbox needs at least one replicator and one coordinator")


def parse_clusters(text: str) -> tuple[ClusterName, ...]:
    """Return the names in `us-east,eu-west`.

    Raises:
        InvalidInput: one is not a cluster name.
    """
    return tuple(names.cluster_name(name.strip()) for name in text.split(",") if name.strip())


def parse_groups(texts: Sequence[str]) -> dict[GroupName, tuple[str, ...]]:
    """Return the groups in `orders=/orders/,/carts/`, one an item.

    Raises:
        InvalidInput: one has no name, no prefix, or is given twice.
    """
    groups: dict[GroupName, tuple[str, ...]] = {}
    for text in texts:
        name, equals, prefixes = text.partition("=")
        if not equals or not prefixes:
            raise InvalidInput(f"{text!r} is not a group: expected NAME=/prefix/[,/prefix/]")
        group = names.group_name(name)
        if group in groups:
            raise InvalidInput(f"group {group} is given twice")
        groups[group] = tuple(p for p in prefixes.split(",") if p)
    return groups


@attrs.frozen(kw_only=True)
class Layout:
    """Names and folders of everything in a sandbox."""

    directory: Path
    spec: SandboxSpec

    @property
    def pki(self) -> Path:
        """Where the CA and every certificate are."""
        return self.directory / "pki"

    @property
    def context_file(self) -> Path:
        """The contexts file for the CLI."""
        return self.directory / CONTEXT_FILE

    def cluster_dir(self, cluster: str) -> Path:
        """Where a cluster's etcd and replicators are."""
        return self.directory / "clusters" / cluster

    @property
    def coordination_dir(self) -> Path:
        """Where the members of the coordination etcd are."""
        return self.directory / "coordination"

    @property
    def coordinators_dir(self) -> Path:
        """Where the coordinators are."""
        return self.directory / "coordinators"

    def coordination_names(self) -> list[str]:
        """Return the names of the coordination etcd's members."""
        return [f"coordination-{i}" for i in range(1, self.spec.coordination_members + 1)]

    def coordinator_names(self) -> list[str]:
        """Return the names of the coordinators."""
        return [f"coordinator-{i}" for i in range(1, self.spec.coordinators + 1)]

    def replicator_names(self, cluster: str) -> list[str]:
        """Return the names of a cluster's replicators."""
        return [f"{cluster}-replicator-{i}" for i in range(1, self.spec.replicators + 1)]

    def port_names(self) -> list[str]:
        """Return a name for each port that is listened on."""
        etcds = [*self.coordination_names(), *(f"{c}-etcd" for c in self.spec.clusters)]
        found = [f"{etcd}:{port}" for etcd in etcds for port in ("client", "peer", "metrics")]
        for cluster in self.spec.clusters:
            for name in self.replicator_names(cluster):
                found += [f"{name}:replication", f"{name}:metrics"]
        found += [f"{name}:api" for name in self.coordinator_names()]
        return [*found, *(self.proxy_names() if self.spec.is_behind_proxies else ())]

    def proxy_names(self) -> list[str]:
        """Return a name for each port at which a proxy stands in front of another.

        The coordination etcd has one for each place, which so is known by where it dials. Where a
        replicator is reached is told to all alike.
        """
        places = (*self.spec.clusters, OUTSIDE)
        names = [f"{name}:client" for name in self.coordination_names()]
        found = [proxy_of(name, seen_from=place) for name in names for place in places]
        for cluster in self.spec.clusters:
            found.append(proxy_of(f"{cluster}-etcd:client", seen_from=OUTSIDE))
            replicators = self.replicator_names(cluster)
            found += [proxy_of(f"{name}:replication") for name in replicators]
        return found

    def home_of_coordinator(self, name: str) -> str:
        """Return where a coordinator lives: one in each region, if there are so many."""
        number = self.coordinator_names().index(name)
        return self.spec.clusters[number] if number < len(self.spec.clusters) else OUTSIDE


def proxy_of(port_name: str, *, seen_from: str = ANYWHERE) -> str:
    """Return the name of the port at which a proxy stands in front of another."""
    return f"{port_name}:from-{seen_from}"


def chosen_ports(layout: Layout, before: Mapping[str, int]) -> dict[str, int]:
    """Return a port for each name: the one it had, as long as it is still free, or a new one.

    Raises:
        Conflict: a port of a coordination etcd with several members is taken; those must not move.
    """
    ports = {name: before[name] for name in layout.port_names() if name in before}
    for name, port in list(ports.items()):
        if is_free(port) and hold(port):
            continue
        if name.startswith("coordination-") and layout.spec.coordination_members > 1:
            raise Conflict(
                f"port {port} of {name} is in use by another process",
                hint="end that process, or start anew with mesh sandbox down --purge",
            )
        del ports[name]
    missing = [name for name in layout.port_names() if name not in ports]
    new = free_ports(len(missing), taken=before.values())
    return ports | dict(zip(missing, new, strict=True))


def make_certificates(layout: Layout) -> None:
    """Make the CA once, and every certificate that is not there yet."""
    authority = create_ca(layout.pki)
    wanted = [
        OPERATOR,
        APPLICATION,
        ("etcd", "coordination"),
        *(("coordinator", name) for name in layout.coordinator_names()),
        *(("etcd", cluster) for cluster in layout.spec.clusters),
        *(("cluster", cluster) for cluster in layout.spec.clusters),
    ]
    for role, name in wanted:
        if not certificate(layout, role, name).key.is_file():
            issue(authority, role, name, hosts=LOOPBACK_HOSTS)


def certificate(layout: Layout, role: str, name: str) -> CertificateFiles:
    """Return where a certificate of this sandbox is."""
    stem = layout.pki / f"{role}-{name}"
    return CertificateFiles(
        ca=layout.pki / "ca.pem",
        cert=stem.with_name(f"{stem.name}.pem"),
        key=stem.with_name(f"{stem.name}.key"),
    )


def coordination_endpoints(layout: Layout, ports: Mapping[str, int]) -> list[str]:
    """Return where the coordination etcd is."""
    return [f"https://127.0.0.1:{ports[f'{n}:client']}" for n in layout.coordination_names()]


def regional_endpoint(ports: Mapping[str, int], cluster: str) -> str:
    """Return where a cluster's etcd is."""
    return f"https://127.0.0.1:{ports[f'{cluster}-etcd:client']}"


def endpoint_from_elsewhere(ports: Mapping[str, int], cluster: str) -> str:
    """Return where those in other regions are told that a cluster's etcd is."""
    return f"https://{_seen(ports, f'{cluster}-etcd:client', OUTSIDE)}"


def _seen(ports: Mapping[str, int], port_name: str, place: str = ANYWHERE) -> str:
    """Return where something is for those at a place: through its proxy, if there is one."""
    return f"127.0.0.1:{ports.get(proxy_of(port_name, seen_from=place), ports[port_name])}"


def _coordination_seen(layout: Layout, ports: Mapping[str, int], place: str) -> list[str]:
    names = layout.coordination_names()
    return [f"https://{_seen(ports, f'{name}:client', place)}" for name in names]


def write_configs(layout: Layout, ports: Mapping[str, int]) -> None:
    """Write the configuration of every process and the contexts file of the CLI."""
    for cluster in layout.spec.clusters:
        for name in layout.replicator_names(cluster):
            path = layout.cluster_dir(cluster) / f"{name}.yaml"
            _write_yaml(path, _replicator_config(layout, ports, cluster, name))
    for name in layout.coordinator_names():
        path = layout.coordinators_dir / f"{name}.yaml"
        _write_yaml(path, _coordinator_config(layout, ports, name))
    operator = _identity(certificate(layout, *OPERATOR))
    api = [f"https://127.0.0.1:{ports[f'{n}:api']}" for n in layout.coordinator_names()]
    contexts = {"current_context": CONTEXT, "contexts": {CONTEXT: {"api": api, **operator}}}
    _write_yaml(layout.context_file, contexts)


def cluster_bodies(layout: Layout, ports: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the specification of each cluster, as the API takes it."""
    return [
        {
            "name": cluster,
            "region": cluster,
            "priority": 10 * (index + 1),
            "etcd_endpoints": [endpoint_from_elsewhere(ports, cluster)],
            "replication_endpoints": [
                _seen(ports, f"{name}:replication") for name in layout.replicator_names(cluster)
            ],
        }
        for index, cluster in enumerate(layout.spec.clusters)
    ]


def group_bodies(layout: Layout) -> list[dict[str, Any]]:
    """Return the specification of each group, as the API takes it."""
    return [
        {
            "name": group,
            "prefixes": list(prefixes),
            "members": list(layout.spec.clusters),
            "active": layout.spec.clusters[0],
            **({"policy": dict(layout.spec.policy)} if layout.spec.policy else {}),
        }
        for group, prefixes in layout.spec.groups.items()
    ]


def load_state(directory: Path) -> tuple[SandboxSpec, dict[str, int]] | None:
    """Return what the sandbox in `directory` consists of and its ports; None if there is none.

    Raises:
        InvalidConfig: its state file is damaged.
    """
    path = directory / STATE_FILE
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
        ports = {str(name): int(port) for name, port in state["ports"].items()}
        return from_plain(SandboxSpec, state["spec"]), ports
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidConfig(
            f"{path} is damaged: {error}", hint="mesh sandbox down --purge begins anew"
        ) from error


def save_state(layout: Layout, ports: Mapping[str, int], view: Mapping[str, Any]) -> None:
    """Write the state file: what it consists of, its ports, and for people everything in it."""
    state = {"spec": to_plain(layout.spec), "ports": dict(ports), "view": dict(view)}
    path = layout.directory / STATE_FILE
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(state, indent=2))
    draft.replace(path)


def _replicator_config(
    layout: Layout, ports: Mapping[str, int], cluster: str, name: str
) -> dict[str, Any]:
    identity = _identity(certificate(layout, "cluster", cluster))
    return {
        "cluster": cluster,
        "name": name,
        "listen": f"127.0.0.1:{ports[f'{name}:replication']}",
        "regional_etcd": {"endpoints": [regional_endpoint(ports, cluster)], **identity},
        "coordination_etcd": {
            "endpoints": _coordination_seen(layout, ports, cluster),
            **identity,
        },
        "identity": {**identity, "trust_domain": TRUST_DOMAIN},
        "timing": {"profile": layout.spec.timing},
        "metrics": f"127.0.0.1:{ports[f'{name}:metrics']}",
    }


def _coordinator_config(layout: Layout, ports: Mapping[str, int], name: str) -> dict[str, Any]:
    identity = _identity(certificate(layout, "coordinator", name))
    return {
        "name": name,
        "listen": f"127.0.0.1:{ports[f'{name}:api']}",
        "coordination_etcd": {
            "endpoints": _coordination_seen(layout, ports, layout.home_of_coordinator(name)),
            **identity,
        },
        "identity": {**identity, "trust_domain": TRUST_DOMAIN},
        "timing": {"profile": layout.spec.timing},
    }


def _identity(files: CertificateFiles) -> dict[str, str]:
    return {"ca": str(files.ca), "cert": str(files.cert), "key": str(files.key)}


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
