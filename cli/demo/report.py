"""What the demo found: proofs, the pause as clients saw it, and a timeline of each failover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from rich.console import Group, RenderableType
from rich.text import Text

from cli.demo.history import (
    NS_PER_MS,
    ClientWrite,
    History,
    Told,
    differing_keys,
    longest_pauses,
    lost_writes,
    second_writer,
    timeline,
)
from cli.demo.objects import StoredObject
from cli.render import shown_ms, table, word
from meshkit.names import GroupName

_AROUND_MS = 300
"""How much of the time before and after a failover its timeline shows."""


@attrs.frozen(kw_only=True)
class Move:
    """One failover of the demo, with the span in which it ran."""

    failover: Mapping[str, Any]
    group: GroupName
    kind: str
    from_ns: int
    to_ns: int


@attrs.frozen(kw_only=True)
class Proof:
    """One claim, checked."""

    claim: str
    ok: bool
    detail: str


@attrs.frozen(kw_only=True)
class DemoReport:
    """Everything the demo found."""

    clusters: tuple[str, ...]
    histories: Mapping[GroupName, History]
    moves: Sequence[Move]
    proofs: Sequence[Proof]
    objects: int
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """Whether every claim held."""
        return all(proof.ok for proof in self.proofs)

    def body(self) -> dict[str, Any]:
        """Return the report for machines."""
        return {
            "ok": self.ok,
            "elapsed_s": round(self.elapsed_s, 1),
            "clusters": list(self.clusters),
            "objects": self.objects,
            "writes": {
                group: {told.name.lower(): history.count(told) for told in Told}
                for group, history in self.histories.items()
            },
            "failovers": [self._failover(move) for move in self.moves],
            "proofs": [attrs.asdict(proof) for proof in self.proofs],
        }

    def view(self, *, unicode: bool) -> RenderableType:
        """Return the report for people."""
        parts: list[RenderableType] = []
        for move in self.moves:
            parts += [*self._move_view(move, unicode=unicode), ""]
        rows = [
            (word("ok" if proof.ok else "failed"), proof.claim, proof.detail)
            for proof in self.proofs
        ]
        return Group(*parts, table(("PROOF", "CLAIM", "FOUND"), rows))

    def _pauses(self, move: Move) -> dict[str, float]:
        writes = self.histories[move.group].writes
        pauses = longest_pauses(writes, from_ns=move.from_ns, to_ns=move.to_ns)
        return {writer: round(pause.pause_ms, 1) for writer, pause in sorted(pauses.items())}

    def _failover(self, move: Move) -> dict[str, Any]:
        failover = move.failover
        return {
            "id": failover["id"],
            "group": move.group,
            "kind": move.kind,
            "source": failover["source"],
            "target": failover["target"],
            "phase": failover["phase"],
            "epoch": failover["epoch_after"],
            "pause_ms_coordinator": failover.get("pause_ms"),
            "pause_ms_clients": self._pauses(move),
        }

    def _move_view(self, move: Move, *, unicode: bool) -> list[RenderableType]:
        failover = move.failover
        pauses = self._pauses(move)
        sdk = [ms for writer, ms in pauses.items() if not writer.startswith("compare")]
        compare = [ms for writer, ms in pauses.items() if writer.startswith("compare")]
        words = [f"coordinator {shown_ms(failover.get('pause_ms'))}"]
        words += [f"SDK clients at most {shown_ms(max(sdk))}"] if sdk else []
        words += [f"the client with the compare alone {shown_ms(max(compare))}"] if compare else []
        title = Text(
            f"{move.kind} {move.group}: {failover['source']} -> {failover['target']}", style="bold"
        )
        lines = timeline(
            self.histories[move.group].writes,
            self.clusters,
            from_ns=move.from_ns - _AROUND_MS * NS_PER_MS,
            to_ns=move.to_ns + _AROUND_MS * NS_PER_MS,
            unicode=unicode,
        )
        return [title, Text(f"writes paused: {'; '.join(words)}"), *(Text(line) for line in lines)]


def proofs(
    *,
    objects: Sequence[StoredObject],
    copied: Mapping[str, Mapping[bytes, bytes]],
    histories: Mapping[GroupName, History],
    copies: Mapping[GroupName, Mapping[str, Mapping[bytes, bytes]]],
    moves: Sequence[Move],
) -> list[Proof]:
    """Return every claim of the demo with whether it held."""
    return [
        _first_copy(objects, copied),
        _succeeded(moves),
        *(_one_writer(group, history.writes) for group, history in histories.items()),
        *(_nothing_lost(group, histories[group], copies[group]) for group in histories),
        *(_identical(group, found) for group, found in copies.items()),
    ]


def _first_copy(
    objects: Sequence[StoredObject], copied: Mapping[str, Mapping[bytes, bytes]]
) -> Proof:
    expected = {obj.key.encode(): obj.value.encode() for obj in objects}
    wrong = [cluster for cluster, copy in copied.items() if dict(copy) != expected]
    return Proof(
        claim="the first load was copied to every cluster",
        ok=not wrong,
        detail=f"differs: {', '.join(wrong)}" if wrong else f"{len(expected)} keys in each",
    )


def _succeeded(moves: Sequence[Move]) -> Proof:
    bad = [f"{m.failover['id']} {m.failover['phase']}" for m in moves]
    bad = [words for words, m in zip(bad, moves, strict=True) if m.failover["phase"] != "succeeded"]
    return Proof(
        claim="every failover succeeded",
        ok=bool(moves) and not bad,
        detail=", ".join(bad) or f"{len(moves)} of {len(moves)}",
    )


def _one_writer(group: GroupName, writes: Sequence[ClientWrite]) -> Proof:
    overlap = second_writer(writes)
    epochs = sorted({w.epoch for w in writes if w.told is Told.DONE})
    return Proof(
        claim=f"{group}: never two clusters accepted writes",
        ok=not overlap and bool(epochs),
        detail=overlap or f"epochs {', '.join(map(str, epochs))}, one after another",
    )


def _nothing_lost(
    group: GroupName, history: History, copies: Mapping[str, Mapping[bytes, bytes]]
) -> Proof:
    lost = {cluster: lost_writes(history.writes, copy) for cluster, copy in copies.items()}
    wrong = [f"{len(w)} lost in {cluster}: {w[0].key.decode()}" for cluster, w in lost.items() if w]
    done = history.count(Told.DONE)
    unknown = history.count(Told.UNKNOWN)
    return Proof(
        claim=f"{group}: every acknowledged write is in every cluster",
        ok=not wrong and done > 0,
        detail="; ".join(wrong) or f"{done} acknowledged, {unknown} of unknown outcome",
    )


def _identical(group: GroupName, copies: Mapping[str, Mapping[bytes, bytes]]) -> Proof:
    differing = {cluster: keys for cluster, keys in differing_keys(copies).items() if keys}
    words = [f"{cluster}: {len(keys)} keys" for cluster, keys in differing.items()]
    size = len(next(iter(copies.values())))
    return Proof(
        claim=f"{group}: all clusters are identical",
        ok=not differing,
        detail="; ".join(words) or f"{size} keys in each",
    )
