"""Which slot of the KV caches a prompt gets, and what it need not compute there."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torchtune_lite.generation.request import Request

WORTH = 16
"""Tokens that a prompt must share with another that is being read for it to wait for them, unless it is the same."""


class Slot:
    """A sequence in the KV caches: the tokens `held` there and those `pending`, which are computed next.

    What it holds stays when its request has ended. `text_len` is the length that the request may reach.
    """

    def __init__(self, number: int) -> None:
        self.number, self.text_len, self.last_use = number, 0, 0
        self.request: Request | None = None
        self.held: list[int] = []
        self.pending: list[int] = []

    def advance(self, count: int) -> None:
        """Note that the first `count` pending tokens were computed."""
        self.held += self.pending[:count]
        del self.pending[:count]

    def release(self) -> None:
        """End the request; what is held stays."""
        self.request = None
        self.pending.clear()


class Place(NamedTuple):
    """A free slot for a prompt, of which the first `shared` tokens are held by `source`, perhaps that slot itself."""

    slot: Slot
    source: Slot
    shared: int


def find_place(
    slots: Sequence[Slot], prompt: Sequence[int], is_compatible: Callable[[Slot], bool] = lambda slot: True
) -> Place | None:
    """Find the slot for a prompt in which least has to be computed; None to wait, where none is free or soon less.

    The last token is always computed, for what comes after it. A conversation goes on in its own slot; what only begins
    like another is copied to the slot that was not used for longest. Keys of slots that are not `is_compatible` are not
    used.
    """
    free = [slot for slot in slots if slot.request is None]
    if not free:
        return None
    most = len(prompt) - 1
    oldest = min(free, key=lambda slot: (bool(slot.held), slot.last_use))
    place = Place(oldest, oldest, 0)
    soon = 0
    for slot in filter(is_compatible, slots):
        shared = min(shared_length(slot.held, prompt), most)
        if shared > place.shared:
            goes_on = slot.request is None and shared >= len(slot.held) - 1
            place = Place(slot if goes_on else oldest, slot, shared)
        if shared == len(slot.held) and len(slot.pending) > 1:
            soon = max(soon, shared + shared_length(slot.pending, prompt[shared:]))
    worth_waiting = soon == len(prompt) or soon - place.shared >= WORTH
    return None if worth_waiting else place


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences share at their beginnings."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
