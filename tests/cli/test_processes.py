"""A long-running process ends in an orderly way when it is told to."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from pathlib import Path

import pytest
import structlog

from cli import logs
from cli.processes import run_interruptible, run_until_stopped
from meshkit.config import LogConfig, LogLevel
from meshkit.errors import TermEnded


@pytest.fixture(autouse=True)
def structlog_as_before():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_sigterm_cancels_what_is_served_and_waits_for_its_clean_up() -> None:
    seen: list[str] = []

    async def serve() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    assert run_until_stopped(serve) == 0
    assert seen == ["cleaned up"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_cleans_up_before_it_ends(number: signal.Signals) -> None:
    seen: list[str] = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work())
    assert seen == ["cleaned up"]


def test_what_ends_by_itself_with_an_error_says_so() -> None:
    async def serve() -> None:
        raise TermEnded("another leads")

    with pytest.raises(TermEnded):
        run_until_stopped(serve)


def test_events_go_to_the_configured_file_with_the_processes_fields(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "process.log"
    logs.configure(LogConfig(file=path), process="coordinator/c1")

    structlog.get_logger().info("term.began", term=5)
    structlog.get_logger().debug("not.shown")

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["event"], e["term"], e["process"]) for e in lines] == [
        ("term.began", 5, "coordinator/c1")
    ]


def test_commands_log_nothing_to_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    logs.configure(LogConfig(level=LogLevel.WARNING))

    structlog.get_logger().warning("etcd.version_unsafe")

    assert capsys.readouterr().out == ""
