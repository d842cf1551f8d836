"""Asks what was lost in every way there is: command line, API, audit, the etcd that keeps it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

import attrs

from chaos.cycles.command import done
from chaos.cycles.losses import Answer
from chaos.planned import Load
from meshkit.codec import decode
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch
from meshkit.quarantine import QuarantineEntry
from meshkit.store.txn import prefix_range

Json = dict[str, Any]

PAGE = 100


@attrs.frozen(kw_only=True)
class Inquiry:
    """Asks about one cluster's part of one lost epoch."""

    load: Load
    cluster: ClusterName
    epoch: Epoch
    rejoin: Json
    """The rejoin that set it aside, as the API shows it."""
    audit: Sequence[Json]
    """The newest entries of the group's audit, as the command line lists them."""
    is_whole: bool
    """Whether the command line is asked too."""

    async def answers(self) -> list[Answer]:
        """Return every answer; the first is what the etcd itself holds."""
        told = Answer(who="API rejoins", count=self.rejoin["diverged"].get("total", 0))
        found = [await self._stored(), await self._by_api(), told]
        if not self.is_whole:
            return found
        asked = (self._by_list(), self._by_export(), self._by_rejoin())
        return [*found, self._by_audit(), *(await asyncio.gather(*asked))]

    async def _stored(self) -> Answer:
        prefix = RegionalKeys.quarantine(self.load.group, self.epoch, "")
        result = await self.load.stores[self.cluster].range(prefix_range(prefix))
        entries = [
            decode(QuarantineEntry, item.value)
            for item in result.items
            if item.key.count(b"/") == prefix.count(b"/")
        ]
        return _of_keys("the etcd itself", [entry.key for entry in entries])

    async def _by_api(self) -> Answer:
        keys: list[bytes] = []
        query = {"cluster": str(self.cluster), "epoch": str(self.epoch)}
        while True:
            path = f"/v1/groups/{self.load.group}/quarantine"
            page = (await self.load.api.get(path, **query))["clusters"][0]
            assert not page["problem"], page["problem"]
            keys += [base64.b64decode(entry["key_base64"]) for entry in page["entries"]]
            if page["next"] is None:
                return _of_keys("API quarantine", keys)
            query["after"] = page["next"]

    async def _by_list(self) -> Answer:
        said = await done(self.load.sandbox, "quarantine", "list", *self._which("100000"))
        found = [base64.b64decode(entry["key_base64"]) for entry in said.body["entries"]]
        return _of_keys("mesh quarantine list", found)

    async def _by_export(self) -> Answer:
        said = await done(self.load.sandbox, "quarantine", "export", *self._which())
        lines = [json.loads(line) for line in said.out.splitlines()]
        found = [base64.b64decode(entry["key_base64"]) for entry in lines]
        return _of_keys("mesh quarantine export", found)

    async def _by_rejoin(self) -> Answer:
        said = await done(self.load.sandbox, "rejoins", "show", self.rejoin["id"])
        return Answer(who="mesh rejoins show", count=said.body["diverged"].get("total", 0))

    def _by_audit(self) -> Answer:
        told = [
            entry["facts"]["diverged"].get("total", 0)
            for entry in self.audit
            if entry["action"] == "rejoin.diverged"
            and entry["facts"]["rejoin"] == self.rejoin["id"]
        ]
        assert told, f"the audit does not know rejoin {self.rejoin['id']}"
        return Answer(who="mesh audit list", count=told[-1])

    def _which(self, limit: str = "") -> tuple[str, ...]:
        limited = ("--limit", limit) if limit else ()
        which = ("--cluster", str(self.cluster), "--epoch", str(self.epoch), *limited)
        return (str(self.load.group), *which)


async def audit_of(load: Load) -> list[Json]:
    """Return the newest entries of the group's audit, as the command line lists them."""
    listing = ("audit", "list", "-g", str(load.group), "--limit", "500")
    said = await done(load.sandbox, *listing)
    entries: list[Json] = said.body["entries"]
    return entries


async def statements(load: Load, failover: Json, audit: Sequence[Json]) -> dict[str, Json]:
    """Return what an emergency may lose, by whoever says it."""
    name = str(failover["id"])
    shown = await done(load.sandbox, "failovers", "show", name)
    api = await load.api.get(f"/v1/failovers/{name}")
    found = {
        "mesh clusters promote": failover["emergency"]["loss"],
        "mesh failovers show": shown.body["emergency"]["loss"],
        "API failovers": api["emergency"]["loss"],
    }
    for entry in audit:
        if entry["facts"].get("failover") == name and "loss" in entry["facts"]:
            found[f"mesh audit list, {entry['action']}"] = entry["facts"]["loss"]
    assert len(found) > 3, "the audit does not say what was lost"
    return found


def _of_keys(who: str, keys: list[bytes]) -> Answer:
    return Answer(who=who, count=len(keys), keys=frozenset(keys))
