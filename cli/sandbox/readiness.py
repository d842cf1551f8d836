"""Waits until a sandbox that was started accepts writes everywhere it should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs

from cli.sandbox import plan
from meshkit.errors import Conflict, MeshError, OutcomeUnknown, Unreachable

if TYPE_CHECKING:
    from cli.api import MeshApi
    from cli.sandbox.sandbox import Sandbox

_POLL_MS = 100


class NotReady(MeshError):
    """The sandbox did not get ready."""

    code = "not_ready"


@attrs.frozen(kw_only=True)
class Readiness:
    """What to wait for, each with the same patience."""

    sandbox: Sandbox
    timeout_ms: int

    async def coordinators(self, api: MeshApi) -> None:
        """Wait until the API is served and a coordinator leads."""

        async def problem() -> str:
            body = await api.get("/readyz")
            if not body.get("ok"):
                return "; ".join(body.get("problems", ())) or "the API is not ready"
            return "" if body.get("leader") else "no coordinator leads"

        await self._wait(problem, "coordinators")

    async def applied(self, api: MeshApi) -> None:
        """Put every cluster and group, repeating what was refused only for the moment."""
        layout, ports = self.sandbox.layout, self.sandbox.ports
        for kind, bodies in (
            ("clusters", plan.cluster_bodies(layout, ports)),
            ("groups", plan.group_bodies(layout)),
        ):
            for body in bodies:
                sent = {name: value for name, value in body.items() if name != "name"}
                await self._put(api, f"/v1/{kind}/{body['name']}", sent)

    async def _put(self, api: MeshApi, path: str, body: dict[str, Any]) -> None:
        async def problem() -> str:
            try:
                await api.put(path, body, dry_run=False)
            except (Conflict, OutcomeUnknown) as error:
                return str(error)
            return ""

        await self._wait(problem, path)

    async def permits(self, api: MeshApi) -> None:
        """Wait until every group has an active cluster with a permit."""
        await self._each_group(api, _permit_problem)

    async def streams(self, api: MeshApi) -> None:
        """Wait until every other member of every group follows in step."""
        await self._each_group(api, _stream_problem)

    async def _each_group(self, api: MeshApi, judge: Callable[[dict[str, Any]], str]) -> None:
        for group in self.sandbox.spec.groups:

            async def problem(path: str = f"/v1/groups/{group}") -> str:
                return judge(await api.get(path))

            await self._wait(problem, f"group {group}")

    async def _wait(self, problem: Callable[[], Awaitable[str]], what: str) -> None:
        """Wait until `problem` returns nothing.

        Raises:
            NotReady: it did not in time, or a process has ended; says the last problem.
        """
        deadline = time.monotonic() + self.timeout_ms / 1000
        while True:
            try:
                found = await problem()
            except Unreachable as error:
                found = str(error)
            except MeshError as error:
                if error.code != "failed":
                    raise
                found = str(error)
            if not found:
                return
            self._check_alive()
            if time.monotonic() > deadline:
                raise NotReady(
                    f"{what} not ready after {self.timeout_ms / 1000:g} s: {found}",
                    hint=f"the logs are below {self.sandbox.directory}",
                )
            await asyncio.sleep(_POLL_MS / 1000)

    def _check_alive(self) -> None:
        for process in self.sandbox.mesh_processes():
            if not process.is_running:
                raise NotReady(
                    f"{process.name} ended: {process.last_words()}", hint=f"see {process.log_file}"
                )
        for member in self.sandbox.etcd_processes():
            if not member.is_running:
                raise NotReady(f"{member.name} ended", hint=f"see {member.log_file}")


def _permit_problem(group: dict[str, Any]) -> str:
    if group.get("active") is None:
        return f"group {group['group']} has not been opened: {group.get('problem', '')}"
    active = [c for c in group["clusters"] if c["active"]]
    if not active or not active[0]["permit"]:
        return f"{group['active']} has no permit for {group['group']} yet"
    return ""


def _stream_problem(group: dict[str, Any]) -> str:
    for member in group["clusters"]:
        if member["active"]:
            continue
        if not member["in_step"] or member["stream"] != "streaming":
            return f"{member['cluster']} does not follow yet: {member['stream']}"
    return ""
