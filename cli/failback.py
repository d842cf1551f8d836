"""Failback: a rejoin if it is needed, then a planned failover back. Shows both, asks, then acts."""

from __future__ import annotations

import uuid
from typing import Any

import attrs
from rich.console import Group as Lines

from cli.api import MeshApi
from cli.moves import Move, move
from cli.rejoins import follow
from cli.session import Session, confirmed

Json = dict[str, Any]
REFUSED = 3


@attrs.frozen(kw_only=True)
class FirstPart:
    """What has to be done before writes can move back."""

    words: str
    is_needed: bool
    running: Json | None = None
    """The rejoin that is under way already."""

    @property
    def is_held(self) -> bool:
        """Whether it waits for a person, so that nothing can be done here."""
        return self.running is not None and self.running["phase"] == "held"


def failback(session: Session, request: Move) -> int:
    """Give write authority back and return the exit code of the part that decided."""
    if request.group is None:
        return move(session, request)
    group = request.group
    target = request.target or session.run(lambda api: _before(api, group))
    if target is None:
        return move(session, request)
    first = session.run(lambda api: _first_part(api, group, target))
    session.output.note(f"part 1 of 2: {first.words}")
    moving = attrs.evolve(request, target=target)
    if first.is_held and not request.dry_run:
        return _rejoined(session, first, moving)
    if first.is_needed:
        return _both(session, first, moving)
    session.output.note(f"part 2 of 2: a planned failover to {target}")
    return move(session, moving)


def _both(session: Session, first: FirstPart, moving: Move) -> int:
    """Show the second part as it looks before the first, ask once for both, and do both.

    The answer holds for the epoch that was shown. Before anything moves the checks are asked again.
    """
    from cli.preview_views import preview_view

    path, asked = f"/v1/groups/{moving.group}/failovers", moving.body(dry_run=True)
    answer = session.run(lambda api: api.post(path, asked, is_change=False)).body
    preview = answer.get("preview")
    if preview is None:
        return move(session, moving)
    title = (
        f"part 2 of 2: a planned failover to {moving.target}. Its checks are of now: they are"
        " asked again after the rejoin, before any write is paused."
    )
    if moving.dry_run:
        shown = {**answer, "rejoin": first.running, "rejoin_needed": True}
        session.output.note(title)
        session.output.result(shown, lambda: preview_view(preview))
        return 0
    session.output.note(Lines(title, preview_view(preview)))
    context = session.settings["context"]
    mesh = f" (context {context})" if context else ""
    question = (
        f"Have {moving.target} rejoin, then move writes of {moving.group} to {moving.target}{mesh}?"
    )
    if not confirmed(question, yes=moving.yes):
        session.output.note("nothing was changed")
        return REFUSED
    agreed = attrs.evolve(
        moving,
        yes=True,
        expect_epoch=moving.expect_epoch or preview["epoch"],
        request_id=moving.request_id or str(uuid.uuid4()),
    )
    code = _rejoined(session, first, agreed)
    if code:
        return code
    session.output.note(f"part 2 of 2: a planned failover to {moving.target}")
    return move(session, agreed)


def _rejoined(session: Session, first: FirstPart, moving: Move) -> int:
    """Follow the rejoin, begun if need be; return the code to stop with, or 0."""
    found = first.running or session.run(lambda api: _begin(api, moving))
    code = follow(session, [found], wait=True, is_part=True) if found else 0
    if code:
        session.output.note("part 2 was not begun: no writes were moved")
    return code


async def _before(api: MeshApi, group: str) -> str | None:
    """Return the cluster that was active before, as the API would choose it."""
    shown = await api.get(f"/v1/groups/{group}")
    lineage = shown.get("lineage")
    return str(lineage["parent"]) if lineage else None


async def _first_part(api: MeshApi, group: str, target: str) -> FirstPart:
    """Return what the target needs in order to be a standby; begins nothing."""
    listed = await api.get("/v1/rejoins", group=group)
    for rejoin in listed["rejoins"]:
        if rejoin["cluster"] == target and rejoin["phase"] in {"advancing", "held"}:
            words = f"{target} is rejoining already: {rejoin['id']} is {rejoin['phase']}"
            words += f" at {rejoin['step']}"
            return FirstPart(words=words, is_needed=True, running=rejoin)
    body = {"group": group, "reason": "", "dry_run": True}
    answer = (await api.post(f"/v1/clusters/{target}/rejoin", body, is_change=False)).body
    results = answer["results"]
    if any(result.get("needed") for result in results):
        words = (
            f"{target} has to rejoin {group} first: what only it has is put in quarantine, then it"
            " becomes a standby"
        )
        return FirstPart(words=words, is_needed=True)
    why = "; ".join(result["message"] for result in results)
    return FirstPart(words=f"{target} needs no rejoin ({why})", is_needed=False)


async def _begin(api: MeshApi, moving: Move) -> Json | None:
    """Begin the rejoin; None if by now there is nothing to begin."""
    body = {"group": moving.group, "reason": moving.reason or "failback"}
    answer = (await api.post(f"/v1/clusters/{moving.target}/rejoin", body)).body
    return next((result["rejoin"] for result in answer["results"] if result["rejoin"]), None)
