"""Ends a coordinator's term when its etcd is not the one any more that the term began with.

What a coordinator has in memory is of a history that was undone; its successor, or itself in a new
term, reads all of it again. It decides nothing about that etcd: the regions do, and obey nobody.
"""

from __future__ import annotations

from typing import NoReturn

import structlog

from coordinator.mesh import read_at_once
from coordinator.term import Term
from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import MeshError, TermEnded
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import CoordinationIncarnation
from meshkit.ordinals import Incarnation, Revision
from meshkit.store.port import Store
from meshkit.store.txn import Get

_log = structlog.get_logger()

LOOK_MS = 1_000


async def until_replaced(store: Store, term: Term, *, clock: Clock) -> NoReturn:
    """Look again and again.

    Raises:
        TermEnded: the revision fell, or another incarnation began.
    """
    highest = Revision(0)
    began: Incarnation | None = None
    while True:
        try:
            revision, (found,) = await read_at_once(store, (Get(Keys.incarnation),))
        except MeshError as error:
            _log.warning("coordination.not_seen", why=str(error))
        else:
            now = _identity(found[0].value if found else None)
            why = _why(revision, highest, now, began)
            if why:
                term.end(why)
                raise TermEnded(why)
            highest, began = revision, now
        await clock.sleep_ms(LOOK_MS)


def _identity(raw: bytes | None) -> Incarnation:
    record = decode(CoordinationIncarnation, raw) if raw else CoordinationIncarnation()
    return record.identity


def _why(revision: Revision, highest: Revision, now: Incarnation, began: Incarnation | None) -> str:
    if revision < highest:
        return f"the coordination etcd went back: revision {revision} after {highest}"
    if began is not None and now != began:
        return f"the coordination etcd is incarnation {now} by now, not {began}"
    return ""
