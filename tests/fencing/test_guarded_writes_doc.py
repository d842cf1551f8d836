"""What docs/guarded-writes.md tells people to type works as it says."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from cli.sandbox.etcd import EtcdProcess
from fencing.write_gate import permit_key
from meshkit.names import GroupName
from meshkit.store.etcd import EtcdStore
from meshkit.store.txn import Delete, Put, Txn
from tests.fencing.region import permit_of

DOC = (Path(__file__).resolve().parents[2] / "docs" / "guarded-writes.md").read_text()


def block(language: str, containing: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", DOC, flags=re.DOTALL)
    return next(str(text) for text in found if containing in text)


@pytest.mark.etcd
async def test_the_etcdctl_example_writes_with_a_permit_and_not_without(
    shared_etcd: EtcdProcess,
) -> None:
    etcdctl = shared_etcd.binary.etcdctl
    if etcdctl is None:
        pytest.skip("this etcd came without etcdctl")
    store = EtcdStore.connect([shared_etcd.client_url])
    key = permit_key(GroupName("orders"))

    def type_it() -> str:
        return subprocess.run(
            ["bash", "-euc", block("sh", "etcdctl txn")],
            env={
                "PATH": f"{etcdctl.parent}:{os.environ['PATH']}",
                "ETCDCTL_API": "3",
                "ETCDCTL_ENDPOINTS": shared_etcd.endpoint,
            },
            capture_output=True,
            check=True,
            text=True,
        ).stdout

    without = type_it()
    nothing = await store.get(b"/orders/42")
    await store.commit(Txn(operations=(Put(key, permit_of(1)),)))
    with_it = type_it()
    item = await store.get(b"/orders/42")
    await store.commit(Txn(operations=(Delete(key), Delete(b"/orders/42"))))
    await store.close()

    assert (without.splitlines()[0], nothing) == ("FAILURE", None)
    assert with_it.splitlines()[0] == "SUCCESS"
    assert item is not None
    assert item.value == b"paid"


def test_the_examples_in_python_are_python() -> None:
    compile(block("python", "WriteGate"), "sdk", "exec")
    compile(block("python", "client.transaction("), "style", "exec")


def test_the_contract_names_the_key_that_the_sdk_compares() -> None:
    assert permit_key(GroupName("orders")).decode() in block("sh", "etcdctl txn")
