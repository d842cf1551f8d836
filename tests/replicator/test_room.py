"""How much goes into a transaction: grows under a backlog, shrinks where etcd is slow or fails."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from meshkit.clock import ManualClock
from meshkit.ordinals import Incarnation, Sequence
from meshkit.store.memory import Fault
from replicator.batch import MainBatch
from replicator.limits import Limits
from replicator.messages import Frame, Welcome
from replicator.receiver import Receiver
from replicator.room import Pace, Room
from tests.replicator.mesh import A, B, G, Mesh
from tests.replicator.records import record, write

LIMITS = Limits()
QUICK, SLOW = LIMITS.batch_ms // 2, 3 * LIMITS.batch_ms


def test_a_backlog_makes_batches_grow_to_the_ceiling() -> None:
    """A standby that was away catches up in large transactions, after a few small ones."""
    pace = Pace(LIMITS)
    rooms = [pace.room]
    for _ in range(6):
        pace.on_done(QUICK, is_filled=True)
        rooms.append(pace.room)

    assert [r.writes for r in rooms] == sorted(r.writes for r in rooms)
    assert rooms[0].writes < rooms[-1].writes
    assert rooms[-1] == Room(writes=LIMITS.batch_writes_max, bytes=LIMITS.batch_bytes_max)


def test_a_slow_etcd_makes_them_shrink_to_the_floor() -> None:
    """One large transaction must not hold up everything else that its etcd has to do."""
    pace = Pace(LIMITS)
    for _ in range(20):
        pace.on_done(SLOW, is_filled=True)

    assert pace.room == Room(writes=LIMITS.batch_writes_min, bytes=LIMITS.batch_bytes_min)


def test_a_failure_halves_and_a_refusal_does_too() -> None:
    """What is repeated after a failure is less than what failed; one refusal counts once."""
    pace = Pace(LIMITS)
    before = pace.room
    pace.on_failed()
    failed = pace.room
    pace.on_refused()
    pace.on_done(QUICK, is_filled=True)
    refused = pace.room
    pace.on_done(QUICK, is_filled=True)

    assert (failed.writes, failed.bytes) == (before.writes // 2, before.bytes // 2)
    assert (refused.writes, refused.bytes) == (before.writes // 4, before.bytes // 4)
    assert pace.room.writes == 2 * refused.writes


def test_what_is_neither_filled_nor_slow_changes_nothing() -> None:
    """On a stream without a backlog the room is no subject."""
    pace = Pace(LIMITS)
    before = pace.room
    pace.on_done(QUICK, is_filled=False)
    pace.on_done(LIMITS.batch_ms + 1, is_filled=True)

    assert pace.room == before


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.booleans(), st.sampled_from("dfr"))),
    st.integers(1, 5_000),
    st.integers(1, 2_000_000),
)
def test_whatever_happens_it_stays_within_its_bounds(
    story: list[tuple[int, bool, str]], writes_max: int, bytes_max: int
) -> None:
    """Both ends are bounded; a configured ceiling below the floor is the floor then."""
    limits = attrs.evolve(LIMITS, batch_writes_max=writes_max, batch_bytes_max=bytes_max)
    pace = Pace(limits)
    for took_ms, is_filled, what in story:
        if what == "f":
            pace.on_failed()
        elif what == "r":
            pace.on_refused()
        else:
            pace.on_done(took_ms, is_filled=is_filled)
        assert min(limits.batch_writes_min, writes_max) <= pace.room.writes <= writes_max
        assert min(limits.batch_bytes_min, bytes_max) <= pace.room.bytes <= bytes_max


class Slow:
    """An etcd that takes a second for each commit of the stream, as long as it is told to."""

    def __init__(self) -> None:
        self.clock: ManualClock | None = None

    async def before(self, operation: str) -> Fault:
        if operation == "commit" and self.clock is not None:
            await self.clock.sleep_ms(1_000)
        return Fault.NONE


async def test_a_stream_takes_less_at_a_time_from_a_target_that_has_become_slow() -> None:
    """The whole stream does what the pure part decides, in both directions."""
    slow = Slow()
    limits = Limits(batch_writes_max=64, batch_writes_min=4, frame_writes_max=50)
    mesh = Mesh(A, B, limits=limits, faults=lambda name: slow if name == B else None)
    await mesh.start()
    await mesh.found(G, A)
    await mesh.converge()
    for n in range(300):
        await mesh.write(A, {f"/orders/{n}": "quick"})
    await mesh.converge()
    quick = largest_of(mesh, b"quick")
    slow.clock = mesh.clock
    for n in range(300):
        await mesh.write(A, {f"/orders/{n}": "slow"})
    await mesh.converge(within_ms=400_000)
    sizes = sizes_of(mesh, b"slow")
    await mesh.close()

    assert quick > 32
    assert sizes[0] > 4
    assert max(sizes[-10:]) == 4


def sizes_of(mesh: Mesh, value: bytes) -> list[int]:
    """Return how many keys got this value in each revision of the target."""
    log = mesh[B].store.server.history._log
    sizes = (sum(c.item.value == value for c in item.changes) for item in log)
    return [size for size in sizes if size]


def largest_of(mesh: Mesh, value: bytes) -> int:
    return max(sizes_of(mesh, value))


def filled_receiver(*sizes: int) -> Receiver:
    """Return a receiver with one frame of records with so many writes each."""
    receiver = Receiver(
        source=A, target=B, incarnation=Incarnation("a-1"), position=Sequence(10), now_ms=0
    )
    receiver.receive(
        Welcome(source=A, incarnation=Incarnation("a-1"), start=Sequence(10)), now_ms=0
    )
    records = tuple(
        record(11 + n, *(write(f"/orders/{n}-{k}") for k in range(size)))
        for n, size in enumerate(sizes)
    )
    through = Sequence(10 + len(sizes))
    receiver.receive(Frame(after=Sequence(10), through=through, records=records), now_ms=0)
    return receiver


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_a_frame_larger_than_the_room_is_taken_in_stretches(sizes: list[int], writes: int) -> None:
    """Whole records, each once and in order; the credit is given back to the last byte."""
    receiver = filled_receiver(*sizes)
    receiver.room = Room(writes=writes, bytes=10**6)
    taken: list[int] = []
    through = Sequence(10)
    while (work := receiver.next_work()) is not None:
        assert isinstance(work, MainBatch)
        assert work.after == through
        is_one = len(work.records) == 1
        assert is_one or sum(r.writes_count for r in work.records) <= writes
        taken += [r.sequence for r in work.records]
        through = work.through
        receiver.on_applied(through, through)

    whole = filled_receiver(*sizes)
    whole.room = Room(writes=10**6, bytes=10**9)
    whole.next_work()
    whole.on_applied(through, through)
    assert taken == list(range(11, 11 + len(sizes)))
    assert credit(receiver) == credit(whole)


def credit(receiver: Receiver) -> int:
    (ack,) = receiver.messages_to_send(now_ms=1)
    return ack.credit_bytes  # type: ignore[union-attr]
