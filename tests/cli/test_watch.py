"""`--watch` goes on through an outage, says so, and ends only by an interrupt."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from cli.session import Seen
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi, Reply, refusal

GROUPS = "GET /v1/groups"
TOLD = {"groups": [samples.GROUP]}
LOST = Reply(None, drop=True)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Whatever started the tests in the background may have had interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted_once_asked(api: FakeApi, times: int) -> Iterator[None]:
    def interrupt() -> None:
        deadline = time.monotonic() + 10
        while len(api.asked(GROUPS)) < times and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield
    thread.join()


def test_an_outage_is_shown_as_unknown_since_when_and_does_not_end_it(
    mesh: Mesh, operator_env: FakeApi
) -> None:
    """An outage of the API is when somebody looks on."""
    operator_env.on(GROUPS, TOLD, LOST, LOST, LOST, TOLD)

    with interrupted_once_asked(operator_env, 8):
        ran = mesh("groups", "list", "--watch=10ms", "-o", "json")

    assert ran.code == 130
    documents = [json.loads(line) for line in ran.out.splitlines()]
    outage = [each for each in documents if each.get("unknown")]
    assert documents[0] == TOLD
    assert outage
    assert {each["unreachable_since_ms"] for each in outage} == {outage[0]["unreachable_since_ms"]}
    assert all(each["problem"] and "groups" not in each for each in outage)
    assert documents[-1] == TOLD


def test_an_outage_is_a_line_where_there_is_no_terminal(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(GROUPS, LOST)

    with interrupted_once_asked(operator_env, 4):
        ran = mesh("groups", "list", "--watch=10ms")

    assert ran.code == 130
    assert "unknown: unreachable since 20" in ran.out
    assert "orders" not in ran.out


def test_4_what_is_no_outage_still_ends_it(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on(GROUPS, refusal("not_allowed", 403, 4, "no role"))

    assert mesh("groups", "list", "--watch=10ms").code == 4


@pytest.mark.parametrize("body", [None, TOLD])
def test_a_terminal_shows_the_outage_above_how_it_stood_before(body: object) -> None:
    seen = Seen(body=body, since_ms=1_780_000_000_000, problem="no address answers")
    console = Console(width=200)

    with console.capture() as captured:
        console.print(seen.screen(lambda told: f"{len(told['groups'])} groups"))

    shown = captured.get()
    assert "unknown: unreachable since 2026-" in shown
    assert "no address answers" in shown
    assert ("as it was before:" in shown, "1 groups" in shown) == (body is TOLD, body is TOLD)
