"""The rows of a data set that are checked before training begins."""

from collections.abc import Sequence
from typing import Any

CHECKED_WHOLE = {"rows": 200_000, "bytes": 64 * 2**20}
"""The most a data set may have of each for all of its rows to be checked at the start."""

CHECKED_FIRST, CHECKED_SPREAD = 100, 10_000
"""The rows of a larger one that are checked at the start: the first ones, and the maximum of evenly spread ones."""


def is_small(rows: Any) -> bool:
    """Return whether all rows of a data set are checked, and its samples kept."""
    return len(rows) <= CHECKED_WHOLE["rows"] and rows.num_bytes <= CHECKED_WHOLE["bytes"]


def some_rows(rows: Any) -> Sequence[int]:
    """Choose the rows of a large data set to check, of fewer bytes than those of a small one but for the first."""
    count = len(rows)
    spread = min(CHECKED_SPREAD, count * CHECKED_WHOLE["bytes"] // max(rows.num_bytes, 1))
    return sorted({*range(min(CHECKED_FIRST, count)), *(k * count // spread for k in range(spread))})
