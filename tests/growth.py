"""Growth of the cost of a call with its input, for code inside regular expressions, where steps cannot be counted."""

import time
from collections.abc import Callable
from typing import Any


def growth(call: Callable[[str], Any], piece: str, size: int = 5_000, times: int = 10) -> float:
    """Divide the processor time of this thread for `times` as many characters of `piece`, repeated, by that for `size`.

    The least of three runs each. Linear growth gives ten, quadratic growth a hundred.
    """

    def least(length: int) -> float:
        text, best = (piece * (length // len(piece) + 1))[:length], float("inf")
        for _ in range(3):
            start = time.thread_time()
            call(text)
            best = min(best, time.thread_time() - start)
        return best

    return least(size * times) / max(least(size), 1e-4)
