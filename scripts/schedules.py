"""Writes `docs/schedules.md`: sequences of events that broke earlier designs, and their tests.

A test belongs to a schedule if its name contains `_s12_` or its docstring names `S12`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SCHEDULES = """\
S1: A region comes back after its group went elsewhere: its etcd refreshes the old permit's lease,
  and its writers are up before its replicator. Gates stay shut: there is no fresh beat.
S2: A replicator obeys a drain and dies before it answers. Its successor, which still sees the
  authority here, does not put the permit again and answers the same cut.
S3: A delayed permit put arrives after another replicator leads, or after the drain. Refused.
S4: Drain, undrain, then the delayed first drain arrives. Refused; the source goes on writing.
S5: A standby that is behind receives the new epoch before the last records of the old one. It
  applies the old one to its cut first.
S6: Emergency to a standby that is behind another standby. The excess of the other is set aside,
  or the other was proposed.
S7: Emergency; a third cluster is behind the promoted one, and the source is gone. It copies from
  the promoted one.
S8: A group is frozen while another of the same stream goes on, then thawed. Nothing is skipped.
S9: A group becomes active in the middle of a cluster's log; sender and receiver restart around
  the opening. Only records of the segment, each once.
S10: A replicator answers `frozen at 800` and dies; its successor has a batch up to 850 in hand.
  The batch fails.
S11: A replicator is stopped between its two renewals for almost `Tr`, then cut off. The permit is
  gone in time.
S12: The holder lapses, a pivot is prepared, a second replicator makes the holder anew. One of the
  two is refused.
S13: `keep`: a promoted cluster promised not to open, and opens only when the promise ended.
S14: A lease is kept alive at the new cluster and runs out at the old one. Nothing is lost.
S15: A copy's cut is compacted halfway, keys come at newer revisions, the stream then delivers
  older ones. No key goes back.
S16: A key deleted in a tail that is compacted away is reported, not silently restored.
S17: An unguarded writer commits after the cut. Quarantined before it is overwritten.
S18: The target dies between pivot and open, or the source so that undrain cannot finish. An
  emergency supersedes the stuck failover.
S19: The coordination etcd is restored from an older snapshot. Writers are suspended until it is
  adopted; then tokens of the new incarnation win.
S20: A coordinator that decided on the pivot is stopped and wakes after its successor rolled back.
  Its transaction fails.
S21: An etcd is killed or frozen under writers and comes back while its replicator is dead. Gates
  acknowledge nothing.
S22: A fence has run out, a human reads for minutes, the old region heals and makes its holder
  anew. Refused: the seal stands.
S23: The leader of the coordination etcd dies and renewals stall for up to 1.6 s. Writes go on.
S24: A replicator confirms authority, is stopped for 60 s, wakes, grants a lease and puts a
  permit. Refused: the lease is younger than the round.
S25: An etcd is restored with a bumped revision: only the raft index fell. Suspended until
  adopted.
S26: The active region is cut off from the coordination etcd, but not from the target. Records
  that still arrive are applied, the target tells it of its seal, and the cut in the stream proves
  that nothing is lost.
S27: Prefixes are added while the stream runs; a transaction touches two groups, one of them
  joining. Each group sees its half once.
S28: etcd before 3.5.8 answers a progress request ahead of its events. Nothing is skipped.
"""

INTRODUCTION = """\
# Schedules that broke earlier designs

Each is a sequence of events that violated a [promise](invariants.md) before a rule was there to
stop it, and what must happen instead. Once what it needs is built it becomes a test, and stays one.
A test named here may check the part of the schedule that is built; its docstring says which.
"""


def text() -> str:
    """Return the document."""
    tests = _tests()
    lines = [INTRODUCTION, "| | Schedule | Tests |", "|---|---|---|"]
    for number, schedule in re.findall(r"^S(\d+): ((?:.|\n(?!S))*)", SCHEDULES, re.MULTILINE):
        named = "<br>".join(f"`{test}`" for test in sorted(tests[int(number)])) or "none yet"
        lines.append(f"| S{number} | {' '.join(schedule.split())} | {named} |")
    return "\n".join(lines) + "\n"


def _tests() -> defaultdict[int, list[str]]:
    found: defaultdict[int, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            said = " ".join(re.findall(r"_s(\d+)(?=_)", node.name))
            said += " " + " ".join(re.findall(r"\bS(\d+)\b", ast.get_docstring(node) or ""))
            where = path.relative_to(ROOT).as_posix()
            for number in {int(text) for text in said.split()}:
                found[number].append(f"{where}::{node.name}")
    return found
