"""One command's run: its settings, its output, and calls of the API from synchronous code."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cli.api import MeshApi, Turn
from cli.options import duration, given
from cli.render import Output, shown_time
from cli.settings import REQUEST_TIMEOUT_MS, OutputForm, Settings, resolve
from meshkit.errors import InvalidInput, Unreachable

T = TypeVar("T")

Fetch = Callable[[MeshApi], Awaitable[Any]]


@attrs.frozen(kw_only=True)
class Session:
    """What a command works with."""

    settings: Settings
    output: Output
    turn: Turn = attrs.field(factory=Turn)
    """So that an address that does not answer costs a command its patience only once."""

    def run(self, act: Callable[[MeshApi], Awaitable[T]], *, timeout_ms: int | None = None) -> T:
        """Open the API, await `act` on it, and return what it returns."""

        async def call() -> T:
            limit_ms = timeout_ms or self.settings.timeout_ms(REQUEST_TIMEOUT_MS)
            context = self.settings.require_api()
            async with MeshApi(context, timeout_ms=limit_ms, turn=self.turn) as api:
                return await act(api)

        return asyncio.run(call())

    def show(
        self, fetch: Fetch, table: Callable[[Any], RenderableType], *, every_ms: int | None = None
    ) -> Any:
        """Fetch and show; with `every_ms` again and again until interrupted. Return the last."""
        if every_ms is None:
            body = self.run(fetch)
            self.output.result(body, lambda: table(body))
            for note in _pause_note(body):
                self.output.note(note)
            return body
        return self.run(functools.partial(self._watch, fetch, table, every_ms))

    async def _watch(
        self, fetch: Fetch, table: Callable[[Any], RenderableType], every_ms: int, api: MeshApi
    ) -> None:
        """Show until interrupted. Whoever looks on during an outage needs this most then."""
        seen = Seen()
        if self.output.form is OutputForm.TABLE and self.output.out.is_terminal:
            with Live(console=self.output.out, auto_refresh=False) as live:
                while True:
                    await seen.look(fetch, api)
                    live.update(seen.screen(table), refresh=True)
                    await asyncio.sleep(every_ms / 1000)
        while True:
            await seen.look(fetch, api)
            self.output.result(seen.document(), lambda: seen.line(table), compact=True)
            await asyncio.sleep(every_ms / 1000)


@attrs.define
class Seen:
    """What a watch knows: what it was told last, and since when it is told nothing."""

    body: Any = None
    since_ms: int | None = None
    problem: str = ""

    async def look(self, fetch: Fetch, api: MeshApi) -> None:
        """Ask once. What it was told before is kept for as long as nobody answers."""
        try:
            self.body = await fetch(api)
        except Unreachable as error:
            self.since_ms, self.problem = self.since_ms or now_ms(), str(error)
        else:
            self.since_ms, self.problem = None, ""

    def document(self) -> Any:
        """Return what is known for machines: never what was known before an outage."""
        if self.since_ms is None:
            return self.body
        return {"unknown": True, "unreachable_since_ms": self.since_ms, "problem": self.problem}

    def screen(self, table: Callable[[Any], RenderableType]) -> RenderableType:
        """Return what is shown on a terminal: during an outage also how it stood before."""
        if self.since_ms is None:
            return Group(*_pause_note(self.body), table(self.body))
        if self.body is None:
            return self._outage()
        return Group(self._outage(), Text("as it was before:", style="dim"), table(self.body))

    def line(self, table: Callable[[Any], RenderableType]) -> RenderableType:
        """Return what is appended where nobody looks on: during an outage only that."""
        return table(self.body) if self.since_ms is None else self._outage()

    def _outage(self) -> Text:
        since = shown_time(self.since_ms, now_ms=now_ms())
        return Text(f"unknown: unreachable since {since}: {self.problem}", style="bold red")


def _pause_note(body: Any) -> list[str]:
    """Return what every status says while automation is paused."""
    from cli.pausing import automation_note

    note = automation_note(body) if isinstance(body, Mapping) else ""
    return [note] if note else []


def open_session(ctx: click.Context) -> Session:
    """Return the session of the command that runs in `ctx`.

    Raises:
        InvalidConfig: a setting is wrong.
    """
    from cli import logs

    logs.configure(logs.COMMAND)
    flags = given(ctx)
    settings = resolve(flags)
    output = Output(form=settings.output, is_quiet=bool(flags.get("quiet")))
    return Session(settings=settings, output=output)


def with_session(command: Callable[..., T]) -> Callable[..., T]:
    """Pass the session as a command's first argument."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        return command(open_session(click.get_current_context()), *args, **kwargs)

    return wrapped


watch_option = click.option(
    "--watch",
    "every_ms",
    is_flag=False,
    flag_value="2s",
    type=duration,
    metavar="[DURATION]",
    help="Show again and again, every 2 s or as given.",
)


def now_ms() -> int:
    """Return UTC milliseconds, to show ages."""
    return time.time_ns() // 1_000_000


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask on the terminal; with `yes` do not ask.

    Raises:
        InvalidInput: there is no terminal to ask on.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidInput(
            "this needs a confirmation and there is no terminal to ask on", hint="pass --yes"
        )
    return click.confirm(question, default=False, err=True)


def confirmed_by_typing(question: str, expected: str, *, yes: bool) -> bool:
    """Ask for a word to be typed, for what cannot be taken back; with `yes` do not ask.

    Raises:
        InvalidInput: there is no terminal to ask on.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidInput(
            "this needs a confirmation and there is no terminal to ask on", hint="pass --yes"
        )
    typed: str = click.prompt(f"{question}\nType {expected} to confirm", default="", err=True)
    return typed.strip() == expected


def differences(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], *, names: Iterable[str] = ()
) -> list[str]:
    """Return one line for each field of `after` that differs from `before`."""
    before = before or {}
    lines = []
    for name in names or after:
        if name in after and before.get(name) != after[name]:
            was = json.dumps(before.get(name), ensure_ascii=False)
            lines.append(f"{name}: {was} -> {json.dumps(after[name], ensure_ascii=False)}")
    return lines
