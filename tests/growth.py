"""How the cost of a call grows with its input, for code that runs inside a regular expression, where no step counts."""

import time
from collections.abc import Callable
from typing import Any


def growth(call: Callable[[str], Any], piece: str, size: int = 5_000, times: int = 10) -> float:
    """Divides the processor time for `times` as many characters of repeated `piece` by that for `size`.

    Of three each the least. Ten for what grows linearly, a hundred for what grows with the square.
    """

    def least(length: int) -> float:
        text, best = (piece * (length // len(piece) + 1))[:length], float("inf")
        for _ in range(3):
            start = time.process_time()
            call(text)
            best = min(best, time.process_time() - start)
        return best

    return least(size * times) / max(least(size), 1e-4)
