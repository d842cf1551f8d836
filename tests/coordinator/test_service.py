"""One process from its start to its clean end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest

from cli.pki import create_ca, issue
from coordinator.service import serve
from fencing.election import Election
from meshkit.clock import settle
from meshkit.config import HostPort
from meshkit.errors import InvalidConfig
from meshkit.identity import IdentityFiles
from meshkit.keys import CoordinationKeys as Keys
from tests.coordinator.fake_region import FakeMesh, background, settle_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def identity(folder: Path) -> IdentityFiles:
    made = issue(create_ca(folder), "coordinator", "c1")
    return IdentityFiles(ca=made.ca, cert=made.cert, key=made.key)


def serving(
    mesh: FakeMesh, files: IdentityFiles, listen: HostPort, metrics: HostPort | None = None
):
    store = mesh.store.connect()
    election = Election(
        store=store, key=Keys.coordinator_leader, value=b"c1", ttl_s=5, clock=mesh.clock
    )
    return serve(store, election, clock=mesh.clock, listen=listen, identity=files, metrics=metrics)


async def test_it_serves_leads_and_resigns_when_it_is_stopped(tmp_path: Path) -> None:
    """So that the next coordinator leads at once, not after a lease has run out."""
    mesh, files = FakeMesh(), identity(tmp_path)
    listen, metrics = HostPort("127.0.0.1", free_port()), HostPort("127.0.0.1", free_port())
    async with mesh.running():
        async with background(serving(mesh, files, listen, metrics)) as (running,):
            await settle_until(lambda: mesh.store.get(Keys.coordinator_leader))
            async with aiohttp.ClientSession() as session:
                async with session.get(
                    f"https://{listen}/readyz", ssl=files.client_context()
                ) as answer:
                    ready = await answer.json()
                async with session.get(f"http://{metrics}/metrics") as answer:
                    text = await answer.text()
                async with session.get(f"http://{metrics}/v1/groups") as answer:
                    hidden = answer.status
        left = await mesh.store.get(Keys.coordinator_leader)

    assert (ready["ok"], ready["leader"]) == (True, "c1")
    assert "mesh_coordinator_leading 1.0" in text
    assert hidden == 404
    assert running.cancelled()
    assert left is None


async def test_an_address_in_use_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """Not with a traceback."""
    mesh, files = FakeMesh(), identity(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = HostPort("127.0.0.1", taken.getsockname()[1])

        with pytest.raises(InvalidConfig, match="cannot listen at"):
            await asyncio.wait_for(serving(mesh, files, listen), 5)

    await settle()
