"""Rows: what a source gives, each with the place it came from."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torchtune_lite.errors import DataError

Row = dict[str, Any]


OnBadSample = Literal["error", "skip"]
"""What happens to a row that cannot be used: the run ends with an error that names it, or does without it."""


class Rows:
    """Rows by index. `name` says where they come from, `where(i)` where row i stands (`train.jsonl:143`).

    `bad`: what was wrong with the rows that were left out of the file, each with its place.
    """

    def __init__(self, name: str, rows: Sequence[Row], where: Callable[[int], str], bad: Sequence[str] = ()) -> None:
        self.name, self._rows, self.where, self.bad = name, rows, where, list(bad)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def raise_problems(problems: Sequence[str], shown: int = 3) -> None:
    """Raises one DataError for all problems, those after the first `shown` counted only; returns if there are none."""
    if problems:
        more = f"; and {len(problems) - shown:,} more" if len(problems) > shown else ""
        raise DataError("; ".join(problems[:shown]) + more)
