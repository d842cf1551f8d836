"""What was lost, by each way to ask, and whether all of them say the same as the harness. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from chaos.checkers import SHOWN_MAX, Judgement, State, Verdict
from chaos.history import Outcome, Write
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch

Json = Mapping[str, Any]

BARE = "bare-"
"""How the names of writers begin that add the compare alone; no window bounds those."""

STATED = ("certain", "certain_of", "is_none", "window_ms", "records_known", "records_estimated")
"""What a statement about the promoted cluster consists of."""


def is_guarded(write: Write) -> bool:
    """Return whether a write went through the SDK's gate."""
    return not write.writer.startswith(BARE)


@attrs.frozen(kw_only=True)
class Account:
    """What the harness itself knows of one lost cluster."""

    source: ClusterName
    epoch: Epoch
    """The one that was lost."""
    certain: int
    """The point up to which nothing may be lost: a revision of the source's etcd."""
    writes: tuple[Write, ...]
    """Every write of the cycle, by whomever."""
    is_unheard: Callable[[bytes], bool]
    """Whether a key may be that of a write whose client died before it heard of it."""

    @property
    def acknowledged(self) -> tuple[Write, ...]:
        """What the source acknowledged in the lost epoch."""
        return tuple(
            w
            for w in self.writes
            if w.outcome is Outcome.OK and (w.cluster, w.epoch) == (self.source, self.epoch)
        )

    @property
    def lost(self) -> frozenset[bytes]:
        """The keys of what the source acknowledged past the certain point."""
        return frozenset(w.key for w in self.acknowledged if (w.revision or 0) > self.certain)

    @property
    def unknown(self) -> frozenset[bytes]:
        """The keys of writes of which the clients do not know what became."""
        return frozenset(w.key for w in self.writes if w.outcome is Outcome.INFO)

    def may_hold(self, key: bytes) -> bool:
        """Return whether a key may be in the source's quarantine."""
        return key in self.lost or key in self.unknown or self.is_unheard(key)


@attrs.frozen(kw_only=True)
class Answer:
    """What one way to ask says is in quarantine at one cluster."""

    who: str
    count: int
    keys: frozenset[bytes] | None = None
    """None: it says only how many."""


def check_answers(account: Account, answers: Sequence[Answer]) -> Verdict:
    """Demand that every way to ask gives the same answer, and the harness's own."""
    wrong = []
    known = [answer for answer in answers if answer.keys is not None]
    if not known or known[0].keys is None:
        return _verdict("answers", ["nobody was asked for keys"])
    reference = known[0].keys
    for answer in answers:
        if answer.count != len(reference):
            wrong.append(f"{answer.who} says {answer.count}, {known[0].who} {len(reference)}")
        if answer.keys is not None and answer.keys != reference:
            differing = answer.keys ^ reference
            wrong.append(f"{answer.who} and {known[0].who} differ in {_shown(differing)}")
    missing = account.lost - reference
    if missing:
        wrong.append(f"lost and not in quarantine: {_shown(missing)}")
    strange = [key for key in reference if not account.may_hold(key)]
    if strange:
        wrong.append(f"in quarantine and never lost: {_shown(strange)}")
    return _verdict("answers", wrong)


def check_excess(
    account: Account, answers: Sequence[Answer], *, ahead_by: Collection[bytes]
) -> Verdict:
    """Demand the same of a third cluster: what it had too much, all of it, and nothing else."""
    wrong = []
    reference = next(a.keys for a in answers if a.keys is not None)
    for answer in answers:
        same_keys = answer.keys is None or answer.keys == reference
        if answer.count != len(reference) or not same_keys:
            wrong.append(f"{answer.who} says {answer.count}, another {len(reference)}")
    missing = set(ahead_by) - reference
    if missing:
        wrong.append(f"it had more than its successor, and not in quarantine: {_shown(missing)}")
    strange = [key for key in reference if not account.may_hold(key)]
    if strange:
        wrong.append(f"in quarantine and never lost: {_shown(strange)}")
    return _verdict("excess", wrong)


def check_statement(account: Account, loss: Json, promoted: State) -> Verdict:
    """Promise 3 by what clients were told: the point, the seconds and `nothing` are true."""
    mine = account.acknowledged
    missing = [w for w in mine if w.key not in promoted]
    wrong = [
        f"{w.key.decode()} at {w.revision} was lost, {account.certain} is certain"
        for w in missing
        if w.revision is not None and w.revision <= account.certain
    ]
    target = loss["target"]
    if missing and target["is_none"]:
        wrong.append(f"{len(missing)} writes were lost, and none was stated")
    guarded = [w for w in missing if is_guarded(w)]
    if guarded and loss["seconds"] is not None:
        span_ns = max(w.return_ns for w in guarded) - min(w.return_ns for w in guarded)
        if span_ns / 1e9 > loss["seconds"]:
            wrong.append(f"writes of {span_ns / 1e9:.2f} s were lost, {loss['seconds']} stated")
    return _verdict("statement", wrong)


def check_stated_alike(statements: Mapping[str, Json]) -> Verdict:
    """Demand that the statement is the same whoever is asked."""
    wrong = []
    (first, reference), *others = statements.items()
    for who, loss in others:
        mine, theirs = loss["target"], reference["target"]
        wrong += [
            f"{name}: {mine[name]} says {who}, {theirs[name]} {first}"
            for name in STATED
            if mine[name] != theirs[name]
        ]
        if loss["fence"] != reference["fence"]:
            wrong.append(f"fence: {loss['fence']} says {who}, {reference['fence']} {first}")
    return _verdict("stated alike", wrong)


def check_kept_or_lost(
    account: Account, states: Mapping[ClusterName, State], *, made_again: frozenset[bytes]
) -> Verdict:
    """Every acknowledged write is everywhere, unless it was lost; what was lost is nowhere.

    What was replayed from quarantine is no longer lost.
    """
    lost = account.lost - made_again
    wrong = []
    for write in account.writes:
        if write.outcome is not Outcome.OK:
            continue
        for cluster, state in states.items():
            is_there = state.get(write.key) == write.value
            if is_there == (write.key in lost):
                how = "came back by itself in" if is_there else "is not in"
                wrong.append(f"{write.key.decode()} of epoch {write.epoch} {how} {cluster}")
    return _verdict("kept or lost", wrong)


def _shown(keys: Collection[bytes]) -> str:
    named = ", ".join(key.decode() for key in sorted(keys)[:SHOWN_MAX])
    return f"{len(keys)} keys ({named})"


def _verdict(check: str, wrong: list[str]) -> Verdict:
    detail = "; ".join(wrong[:SHOWN_MAX])
    more = f" and {len(wrong) - SHOWN_MAX} more" if len(wrong) > SHOWN_MAX else ""
    judgement = Judgement.INVALID if wrong else Judgement.VALID
    return Verdict(check=check, judgement=judgement, detail=detail + more)
