"""`fence_mode: rbac` on a whole sandbox: etcd itself refuses whoever looks at no permit."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from chaos.planned import Load, loaded
from cli.sandbox.sandbox import Sandbox
from meshkit.errors import NotAllowed
from meshkit.names import ClusterName
from meshkit.ordinals import Revision
from meshkit.store.txn import Committed, Put, Txn
from tests.e2e.conftest import Rig
from tests.e2e.test_kills import DEADLINE_S, judged, ready

CLUSTERS = ("us-east", "eu-west")
ROLE = "application"
CONFIGURED = f"fence_mode: rbac\napplication_role: {ROLE}\n"


async def etcdctl(sandbox: Sandbox, cluster: str, *words: str) -> None:
    pki = sandbox.layout.directory / "pki"
    etcd = sandbox.regional[cluster]
    process = await asyncio.create_subprocess_exec(
        str(etcd.binary.etcdctl),
        f"--endpoints={etcd.endpoint}",
        f"--cacert={pki / 'ca.pem'}",
        f"--cert={pki / f'cluster-{cluster}.pem'}",
        f"--key={pki / f'cluster-{cluster}.key'}",
        *words,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"ETCDCTL_API": "3"},
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors


async def enable_auth(sandbox: Sandbox) -> None:
    """Users are known by their certificates; the replicators' is an administrator."""
    for cluster in CLUSTERS:
        for words in (
            ("user", "add", "root", "--no-password"),
            ("user", "grant-role", "root", "root"),
            ("user", "add", f"cluster {cluster}", "--no-password"),
            ("user", "grant-role", f"cluster {cluster}", "root"),
            ("role", "add", ROLE),
            ("role", "grant-permission", ROLE, "--prefix=true", "read", "/mesh/v1/"),
            ("role", "grant-permission", ROLE, "--prefix=true", "read", "/orders/"),
            ("user", "add", "application sandbox", "--no-password"),
            ("user", "grant-role", "application sandbox", ROLE),
            ("auth", "enable"),
        ):
            await etcdctl(sandbox, cluster, *words)


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("rbac")
    sandbox = Sandbox.create(directory / "sandbox", clusters=CLUSTERS, timing="fast")
    try:
        asyncio.run(sandbox.start())
        asyncio.run(enable_auth(sandbox))
        for cluster, replicators in sandbox.replicators.items():
            for process in replicators:
                path = sandbox.layout.cluster_dir(cluster) / f"{process.name}.yaml"
                path.write_text(path.read_text() + CONFIGURED)
                process.restart()
        yield Rig(sandbox, directory)
    finally:
        asyncio.run(sandbox.stop())
        if not os.environ.get("MESH_E2E_KEEP"):
            sandbox.purge()


async def written(load: Load, cluster: str) -> Revision | None:
    """Write as a client that knows nothing of MeshKit; None if etcd does not allow it."""
    put = Put(f"/orders/plain/{cluster}".encode(), b"x")
    try:
        outcome = await load.stores[ClusterName(cluster)].commit(Txn(operations=(put,)))
    except NotAllowed:
        return None
    assert isinstance(outcome, Committed)
    return outcome.revision


async def writable_at(load: Load, expected: str) -> None:
    """Wait until a plain client may write exactly there."""
    async with asyncio.timeout(DEADLINE_S):
        while [c for c in CLUSTERS if await written(load, c) is not None] != [expected]:
            await asyncio.sleep(0.1)


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_a_client_that_looks_at_no_permit_is_refused_by_the_old_active_cluster(
    fenced: Rig,
) -> None:
    """It is refused before the cut, so nothing of its writes is lost; guarded ones go on."""
    async with loaded(fenced.sandbox, guarded=2, bare=0) as load:
        await ready(load)
        source = await load.active()
        target = next(c for c in CLUSTERS if c != source)
        await writable_at(load, source)

        move = await load.move(target)
        assert move.phase == "succeeded"

        assert await written(load, source) is None
        await writable_at(load, target)
        assert await judged(load) == []
