"""The plan of an epoch: the samples of each micro-batch, as lists of their numbers."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from random import Random

Plan = Sequence[Sequence[int]]


class Chunks(Sequence):
    """`batch_size` samples of an order at a time, the last may be fewer; made when asked for."""

    def __init__(self, order: Sequence[int], batch_size: int) -> None:
        self.order, self.batch_size = order, batch_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number: int) -> Sequence[int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.order[number * self.batch_size : (number + 1) * self.batch_size]


class Share(Sequence):
    """Each `step`-th micro-batch of a plan from number `first` on, `length` of them: empty where the plan has ended.

    Several processes take micro-batches in turn, the first of them number 0, and each has as many, so that a step of n
    in each of N processes takes the next n · N of the plan, whatever n and N are. `length` None: without empty ones.
    """

    def __init__(self, plan: Plan, first: int, step: int, length: int | None = None) -> None:
        self.plan, self.first, self.step = plan, first, step
        self.length = max(0, -(-(len(plan) - first) // step)) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sequence[int]:
        if not 0 <= number < self.length:
            raise IndexError(number)
        place = self.first + number * self.step
        return self.plan[place] if place < len(self.plan) else ()


def by_length(order: Sequence[int], lengths: Sequence[int], batch_size: int, rng: Random, spread: int = 50) -> Plan:
    """Take samples of about the same length: sorts each `spread` micro-batches of the order, then shuffles them."""
    plan = [
        batch
        for part in Chunks(order, batch_size * spread)
        for batch in Chunks(sorted(part, key=lengths.__getitem__), batch_size)
    ]
    rng.shuffle(plan)
    return plan


def best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> Plan:
    """Fill micro-batches of at most `capacity` tokens: the longest sample first, each where the least room is left.

    The number of micro-batches and how full each is follow from the lengths alone (best-fit decreasing; Johnson et al.,
    SIAM J. Comput. 3(4), 1974); which of several samples of a length goes where follows from their order.
    """
    plan: list[list[int]] = []
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
    """Make a plan of a draw `count` micro-batches long: leaves out its last, or halves those of the most samples."""
    largest_first = [(-len(batch), (number,), batch) for number, batch in enumerate(plan[:count])]
    heapify(largest_first)
    while len(largest_first) < count:
        _, place, batch = heappop(largest_first)
        for part, half in enumerate((batch[: len(batch) // 2], batch[len(batch) // 2 :])):
            heappush(largest_first, (-len(half), (*place, part), half))
    return [batch for _, _, batch in sorted(largest_first, key=lambda each: each[1])]
