"""Which samples make up each micro-batch of an epoch, as lists of their numbers."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from random import Random

Plan = list[list[int]]


def in_turn(order: Sequence[int], batch_size: int) -> Plan:
    """Takes `batch_size` samples at a time; the last may be fewer."""
    return [list(order[first : first + batch_size]) for first in range(0, len(order), batch_size)]


def by_length(order: Sequence[int], lengths: Sequence[int], batch_size: int, rng: Random, spread: int = 50) -> Plan:
    """Takes samples of about the same length: sorts each `spread` micro-batches of the order, then shuffles them."""
    plan = [
        batch
        for part in in_turn(order, batch_size * spread)
        for batch in in_turn(sorted(part, key=lengths.__getitem__), batch_size)
    ]
    rng.shuffle(plan)
    return plan


def best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> Plan:
    """Fills micro-batches of at most `capacity` tokens: the longest sample first, each where the least room is left.

    The number of micro-batches and how full each is follow from the lengths alone (best-fit decreasing; Johnson et al.,
    SIAM J. Comput. 3(4), 1974); which of several samples of a length goes where follows from their order.
    """
    plan: Plan = []
    with_room: dict[int, list[int]] = {}  # room → micro-batches that have just that left
    rooms: list[int] = []  # its keys, sorted
    for sample in sorted(order, key=lambda sample: -lengths[sample]):
        length = lengths[sample]
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        else:
            room, number = capacity, len(plan)
            plan.append([])
        plan[number].append(sample)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(number)
    return plan


def as_many(plan: Plan, count: int) -> Plan:
    """Makes a plan of a draw `count` micro-batches long: leaves out its last, or halves those of the most samples."""
    plan = plan[:count]
    while len(plan) < count:
        most = max(range(len(plan)), key=lambda number: len(plan[number]))
        half = len(plan[most]) // 2
        plan[most : most + 1] = [plan[most][:half], plan[most][half:]]
    return plan
