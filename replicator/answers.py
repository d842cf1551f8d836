"""The answers a region gives, made from what its fence says. Pure."""

from __future__ import annotations

import attrs

from fencing.fence_view import FenceView
from meshkit.commands import Answer, AnswerOutcome, Command, CommandStep
from meshkit.model import Lineage
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision, Sequence, Token
from meshkit.vector import ClusterVersionVector


@attrs.frozen(kw_only=True)
class Answers:
    """Makes the answers of one cluster in one incarnation."""

    cluster: ClusterName
    incarnation: Incarnation

    def fact(
        self,
        command: Command,
        token: Token,
        view: FenceView,
        *,
        revision: Revision | None = None,
    ) -> Answer:
        """Return the answer to an obeyed command.

        `view` is from before the act; `revision` is the act's, or None if it was done before.
        """
        new = Sequence(revision) if revision is not None else None
        match command.step:
            case CommandStep.DRAIN:
                return self.done(command, token, cut=view.cut or new, prefixes=view.scope or ())
            case CommandStep.SEAL:
                is_there = view.fence is not None and view.fence.epoch == command.epoch
                cut = (view.cut or new) if is_there else None
                opened = view.opened if is_there else None
                return self.done(command, token, cut=cut, opened=opened, prefixes=view.scope or ())
            case CommandStep.OPEN:
                is_open = view.fence is not None and view.fence.epoch == command.epoch
                return self.done(command, token, opened=view.opened if is_open else new)
            case _:
                return self.done(command, token)

    def done(
        self,
        command: Command,
        token: Token,
        *,
        cut: Sequence | None = None,
        watermark: Sequence | None = None,
        opened: Sequence | None = None,
        vector: ClusterVersionVector | None = None,
        prefixes: tuple[str, ...] = (),
        at_ms: int | None = None,
        stands_on: Lineage | None = None,
    ) -> Answer:
        """Return that it is done, with what the coordinator needs to know of it."""
        return Answer(
            group=command.group,
            cluster=self.cluster,
            step=command.step,
            failover=command.failover,
            token=token,
            outcome=AnswerOutcome.DONE,
            cut=cut,
            incarnation=self.incarnation,
            watermark=watermark,
            opened=opened,
            vector=vector or ClusterVersionVector(),
            prefixes=prefixes,
            at_ms=at_ms,
            stands_on=stands_on,
        )

    def refused(self, command: Command, token: Token, reason: str) -> Answer:
        """Return that it will not be done by repeating it."""
        done = self.done(command, token)
        return attrs.evolve(done, outcome=AnswerOutcome.REFUSED, reason=reason)
