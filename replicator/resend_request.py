"""The one request that a stream may have to send history again, until it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshkit.errors import Refused
from meshkit.ordinals import Sequence
from meshkit.regional import Checkpoint
from replicator.link.port import LinkLost
from replicator.resend import Resend


class ResendAsked(Refused):
    """This connection ends, so that another begins earlier."""

    code = "resend_asked"


class ResendRequest:
    """The one request that a stream may have at a time."""

    def __init__(self, nudge: Callable[[], None]) -> None:
        self._nudge = nudge
        self._after: Sequence | None = None
        self._outcome: asyncio.Future[Resend] | None = None
        self._current: Resend | None = None
        """What the newest connection brings of it; an older one's is of an older request."""

    async def ask(self, after: Sequence) -> Resend:
        """Have everything past `after` sent again, and return what came.

        Raises:
            Refused: something is being sent again already, or nothing past it is applied yet.
            LinkLost: the connection ended before all was sent.
        """
        if self._outcome is not None:
            raise Refused("something is being sent again already", hint="try again later")
        self._after, self._outcome = after, asyncio.get_running_loop().create_future()
        self._current = None
        self._nudge()
        try:
            return await self._outcome
        finally:
            self._after = self._outcome = None

    @property
    def _is_open(self) -> bool:
        return self._outcome is not None and not self._outcome.done()

    def begin(self, own: Checkpoint | None) -> Resend | None:
        """Return what a connection that begins at `own` asks to be sent again, if anything."""
        if not self._is_open or self._after is None or self._outcome is None:
            return None
        if own is None or self._after >= own.sequence:
            at = own.sequence if own else "nothing"
            error = Refused(f"only {at} is applied here yet: there is nothing to send again")
            self._outcome.set_exception(error)
            return None
        self._current = Resend(after=self._after, through=own.sequence)
        return self._current

    def check(self, resend: Resend | None) -> None:
        """End a connection that began before something was asked.

        Raises:
            ResendAsked: begin anew.
        """
        if self._is_open and (resend is None or resend is not self._current):
            raise ResendAsked("the history is to be sent again")

    def conclude(self, resend: Resend | None) -> None:
        """Note how far a connection has come."""
        if resend is None or resend is not self._current or self._outcome is None:
            return
        if self._is_open and resend.is_over:
            self._outcome.set_result(resend)

    def on_lost(self, resend: Resend | None) -> None:
        """Note that a connection ended; one on which something was sent again is not tried anew."""
        self.conclude(resend)
        if resend is None or resend is not self._current or self._outcome is None:
            return
        if self._is_open and resend.frames:
            text = "the connection ended before all was sent again; nothing was changed"
            self._outcome.set_exception(LinkLost(text, hint="ask again"))
