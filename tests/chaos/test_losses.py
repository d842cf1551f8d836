"""The judge of the cycles finds every way in which an answer to what was lost can be wrong."""

from __future__ import annotations

import attrs
import pytest

from chaos.cycles.losses import (
    Account,
    Answer,
    check_answers,
    check_excess,
    check_kept_or_lost,
    check_stated_alike,
    check_statement,
)
from chaos.history import Outcome, Write
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision

A, B = ClusterName("a"), ClusterName("b")
LOSS = {
    "seconds": 2,
    "fence": "lease-expired",
    "target": {
        "certain": 10,
        "certain_of": "a",
        "is_none": False,
        "window_ms": 1_800,
        "records_known": 3,
        "records_estimated": 4,
    },
}


def write(
    key: str,
    revision: int | None,
    *,
    writer: str = "sdk-1",
    epoch: int = 1,
    cluster: ClusterName | None = A,
    outcome: Outcome = Outcome.OK,
    at_s: float = 1.0,
) -> Write:
    return Write(
        writer=writer,
        key=key.encode(),
        value=b"v",
        call_ns=0,
        return_ns=int(at_s * 1e9),
        outcome=outcome,
        cluster=cluster,
        epoch=Epoch(epoch),
        revision=None if revision is None else Revision(revision),
    )


WRITES = (
    write("kept", 10),
    write("lost", 11),
    write("lost-bare", 12, writer="bare-1"),
    write("unknown", None, cluster=None, outcome=Outcome.INFO),
    write("later", 40, cluster=B, epoch=2),
    write("home-again", 50, epoch=3),
)
ACCOUNT = Account(
    source=A, epoch=Epoch(1), certain=10, writes=WRITES, is_unheard=lambda key: key == b"unheard"
)
LOST = frozenset({b"lost", b"lost-bare"})


def answers(*keys: bytes, count: int | None = None) -> list[Answer]:
    told = Answer(who="audit", count=len(keys) if count is None else count)
    return [Answer(who="etcd", count=len(keys), keys=frozenset(keys)), told]


def test_the_harness_knows_what_was_acknowledged_past_the_certain_point() -> None:
    assert ACCOUNT.lost == LOST


@pytest.mark.parametrize("more", [(), (b"unknown",), (b"unheard",)])
def test_the_same_answer_by_all_is_right_whatever_became_of_unknown_writes(
    more: tuple[bytes, ...],
) -> None:
    assert check_answers(ACCOUNT, answers(*LOST, *more)).is_valid


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (answers(b"lost"), "lost and not in quarantine: 1 keys (lost-bare)"),
        (answers(*LOST, b"kept"), "in quarantine and never lost: 1 keys (kept)"),
        (answers(*LOST, count=7), "audit says 7, etcd 2"),
        (
            [*answers(*LOST), Answer(who="list", count=2, keys=frozenset({b"lost", b"kept"}))],
            "list and etcd differ in 2 keys",
        ),
        ([], "nobody was asked"),
    ],
)
def test_an_answer_that_differs_is_found(wrong: list[Answer], words: str) -> None:
    verdict = check_answers(ACCOUNT, wrong)

    assert not verdict.is_valid
    assert words in verdict.detail


def test_what_a_third_cluster_had_too_much_is_all_in_its_quarantine() -> None:
    right = check_excess(ACCOUNT, answers(b"lost"), ahead_by={b"lost"})
    missing = check_excess(ACCOUNT, answers(b"lost"), ahead_by=LOST)
    strange = check_excess(ACCOUNT, answers(b"lost", b"later"), ahead_by={b"lost"})
    unlike = check_excess(ACCOUNT, answers(b"lost", count=0), ahead_by={b"lost"})

    assert right.is_valid
    assert [v.is_valid for v in (missing, strange, unlike)] == [False] * 3


def test_a_statement_is_true_of_what_the_promoted_cluster_has() -> None:
    promoted = {b"kept": b"v"}

    assert check_statement(ACCOUNT, LOSS, promoted).is_valid


def test_what_was_certain_and_is_missing_is_found() -> None:
    assert "10 is certain" in check_statement(ACCOUNT, LOSS, {}).detail


def test_a_loss_that_was_stated_as_none_is_found() -> None:
    none = LOSS | {"target": {**LOSS["target"], "is_none": True}}  # type: ignore[dict-item]

    assert "none was stated" in check_statement(ACCOUNT, none, {b"kept": b"v"}).detail


def test_more_seconds_than_were_stated_are_found_but_not_for_a_writer_without_a_gate() -> None:
    long = (*WRITES, write("early", 13, at_s=0.0), write("late", 14, at_s=2.5))
    bare = (*WRITES, write("early", 13, at_s=0.0), write("late", 14, at_s=2.5, writer="bare-1"))

    said = check_statement(attrs.evolve(ACCOUNT, writes=long), LOSS, {b"kept": b"v"})
    unbound = check_statement(attrs.evolve(ACCOUNT, writes=bare), LOSS, {b"kept": b"v"})

    assert "2.50 s were lost, 2 stated" in said.detail
    assert unbound.is_valid


def test_two_statements_that_differ_are_found() -> None:
    other = LOSS | {"target": {**LOSS["target"], "certain": 9}}  # type: ignore[dict-item]

    assert check_stated_alike({"API": LOSS, "audit": LOSS}).is_valid
    assert (
        "certain: 9 says audit, 10 API" in check_stated_alike({"API": LOSS, "audit": other}).detail
    )


def test_what_was_lost_is_nowhere_and_all_else_everywhere_unless_it_was_made_again() -> None:
    kept = {b"kept": b"v", b"later": b"v", b"home-again": b"v"}
    none: frozenset[bytes] = frozenset()

    assert check_kept_or_lost(ACCOUNT, {A: kept, B: kept}, made_again=none).is_valid
    missing = check_kept_or_lost(ACCOUNT, {A: kept, B: {b"kept": b"v"}}, made_again=none)
    assert "later of epoch 2 is not in b" in missing.detail
    back = check_kept_or_lost(ACCOUNT, {A: {**kept, b"lost": b"v"}, B: kept}, made_again=none)
    assert "lost of epoch 1 came back by itself in a" in back.detail
    again = kept | dict.fromkeys(LOST, b"v")
    assert check_kept_or_lost(ACCOUNT, {A: again, B: again}, made_again=LOST).is_valid
