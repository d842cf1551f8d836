"""Walks every state a small world can reach, breadth first.

So the first violation found is one of the shortest, and its moves are the counterexample. The world
is any immutable, hashable value; its moves bring it into a canonical form, so that states which
differ only in what cannot matter any more are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

import attrs

W = TypeVar("W", bound=Hashable)


class Move(NamedTuple, Generic[W]):
    """One thing that may happen next."""

    name: str
    world: W
    is_fair: bool = False
    """Whether it happens by itself sooner or later, unless something else happens first."""


class Broken(Exception):
    """A state, or a move, that must not be."""


class Violation(Exception):
    """What was broken, and the shortest way there."""

    def __init__(self, kind: str, trace: list[str]) -> None:
        lines = [f"{number:3}. {move}" for number, move in enumerate(trace, start=1)]
        super().__init__("\n".join([f"{kind}, after {len(trace)} moves:", *lines]))
        self.kind = kind
        self.trace = trace


@attrs.define(eq=False)
class Walk(Generic[W]):
    """Every state reached, numbered in the order it was met, and how."""

    number_of: dict[W, int] = attrs.field(factory=dict)
    came_by: list[tuple[int, str]] = attrs.field(factory=list)
    fair_before: list[list[int]] = attrs.field(factory=list)
    """By state: those from which one fair move leads here."""
    moves: int = 0

    def meet(self, world: W, before: int, name: str) -> bool:
        """Number a state; return whether it is new."""
        if world in self.number_of:
            return False
        self.number_of[world] = len(self.came_by)
        self.came_by.append((before, name))
        self.fair_before.append([])
        return True

    def trace(self, number: int, *more: str) -> list[str]:
        """Return the moves that lead from the first state to this one."""
        names = list(more[::-1])
        while number:
            number, name = self.came_by[number]
            names.append(name)
        return names[::-1]

    def __iter__(self) -> Iterator[W]:
        return iter(self.number_of)

    def __len__(self) -> int:
        return len(self.came_by)


def walk(
    first: W,
    *,
    moves: Callable[[W], Iterable[Move[W]]],
    check: Callable[[W], None],
    is_end: Callable[[W], bool],
    states_max: int = 100_000,
) -> Walk[W]:
    """Return the walk over all that can be reached from `first`.

    Raises:
        Violation: `check` or a move found something broken; or from some state no fair moves lead
            to an end ("stuck").
    """
    found: Walk[W] = Walk()
    found.meet(first, 0, "")
    queue = deque([first])
    while queue:
        world = queue.popleft()
        number = found.number_of[world]
        try:
            check(world)
            for move in moves(world):
                found.moves += 1
                if found.meet(move.world, number, move.name):
                    queue.append(move.world)
                if move.is_fair:
                    found.fair_before[found.number_of[move.world]].append(number)
        except Broken as broken:
            raise Violation(str(broken), found.trace(number)) from None
        assert len(found) <= states_max, f"the walk does not end within {states_max} states"
    _check_ends(found, is_end)
    return found


def _check_ends(found: Walk[W], is_end: Callable[[W], bool]) -> None:
    """Never stuck: left to themselves, things can come to an end from every state."""
    ends = [number for world, number in found.number_of.items() if is_end(world)]
    good, queue = set(ends), deque(ends)
    while queue:
        for before in found.fair_before[queue.popleft()]:
            if before not in good:
                good.add(before)
                queue.append(before)
    stuck = next((number for number in range(len(found)) if number not in good), None)
    if stuck is not None:
        raise Violation("stuck", found.trace(stuck))
