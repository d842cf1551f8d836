"""What may still be asked of a failover. Pure."""

from __future__ import annotations

from coordinator.failover.record import Failover, Phase
from meshkit.errors import Refused


def check_abort(record: Failover) -> None:
    """Allow an abort.

    Raises:
        Refused: it has ended, or authority has moved.
    """
    if record.phase.is_final:
        raise Refused(
            f"failover {record.id} has already ended: {record.phase.value}",
            hint=f"see who accepts writes: mesh groups show {record.group}",
        )
    if record.authority_moved:
        raise Refused(
            f"failover {record.id} has moved authority to {record.target}"
            f" (epoch {record.epoch_after}); it can only go forward",
            hint=f"to move writes back, begin a new one: mesh clusters failback {record.source}",
        )


def check_resume(record: Failover) -> None:
    """Allow a resume.

    Raises:
        Refused: it is not held.
    """
    if record.phase is not Phase.HELD:
        raise Refused(
            f"failover {record.id} is not held but {record.phase.value}",
            hint=f"see how it stands: mesh failovers show {record.id}",
        )


def check_consent(record: Failover) -> None:
    """Allow consent to a loss.

    Raises:
        Refused: it is no emergency, or there is nothing left to consent to.
    """
    if record.emergency is None and record.fallback is None:
        raise Refused(f"failover {record.id} is no emergency: it loses nothing")
    if record.phase.is_final or record.authority_moved or record.undoing:
        raise Refused(
            f"failover {record.id} does not wait for consent: it is {record.phase.value}",
            hint=f"see how it stands: mesh failovers show {record.id}",
        )
