"""Rows: what a source gives, by index, each with the place it came from.

Each kind of file has a class of its own with the methods of `Rows`, which are all that a data set uses.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Literal

import torch

from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted

Row = dict[str, Any]


OnBadSample = Literal["error", "skip"]
"""The treatment of a row that cannot be used: an error that names it, or leaving it out."""


class Rows:
    """Rows by index. `name` says where they come from, `where(i)` where row i stands (`train.jsonl:143`).

    `num_bytes`: the size of the file or its part; 0 where it is not known. Reading a row that is broken in the file
    raises DataError with its place.
    """

    def __init__(self, name: str, rows: Sequence[Row], where: Callable[[int], str], num_bytes: int = 0) -> None:
        self.name, self._rows, self.where, self.num_bytes = name, rows, where, num_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the rows from `start` to `stop` as bytes that are the same wherever and however packed they lie."""
        for index in range(start, stop):
            yield _as_bytes(self._rows[index])


class JoinedRows:
    """The rows of several files, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts, self._ends = list(parts), list(accumulate(map(len, parts)))
        self.name = f"{parts[0].name} and {counted(len(parts) - 1, 'more file')}"
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        part, i = self._find(index)
        return part[i]

    def where(self, index: int) -> str:
        """Say where a row stands."""
        part, i = self._find(index)
        return part.where(i)

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of the rows from `start` to `stop`."""
        for part, end in zip(self._parts, self._ends, strict=True):
            first = end - len(part)
            if start < end and first < stop:
                yield from row_content(part, max(start - first, 0), min(stop - first, len(part)))

    def _find(self, index: int) -> tuple[Any, int]:
        number, i = find_part(self._ends, index)
        return self._parts[number], i


class SelectedRows:
    """Some of the rows, by their numbers."""

    def __init__(self, rows: Any, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices
        self.name, self.num_bytes = rows.name, rows.num_bytes * len(indices) // max(len(rows), 1)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Row:
        return self._rows[self._indices[index]]

    def where(self, index: int) -> str:
        """Say where a row stands."""
        return self._rows.where(self._indices[index])

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of the rows from `start` to `stop`, of those that follow each other at once."""
        numbers = self._indices[start:stop]
        first = 0
        for at in range(1, len(numbers) + 1):
            if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
                yield from row_content(self._rows, numbers[first], numbers[at - 1] + 1)
                first = at


class MarkedRows:
    """Numbers of rows: one byte for each row that there is, however many are marked; worker processes mark them too."""

    def __init__(self, count: int) -> None:
        self._marks = torch.zeros(count, dtype=torch.uint8)
        with suppress(RuntimeError):  # without shared memory there are no workers either
            self._marks.share_memory_()

    def __len__(self) -> int:
        return int(self._marks.sum())

    def __contains__(self, row: int) -> bool:
        return bool(self._marks[row])

    def __iter__(self) -> Iterator[int]:
        yield from self._marks.nonzero()[:, 0].tolist()

    def add(self, row: int) -> None:
        """Mark a row."""
        self._marks[row] = 1


def find_part(ends: Sequence[int], index: int, unit: str = "row") -> tuple[int, int]:
    """Find which of several parts, of which the last items end at `ends`, has an item, and its number in it."""
    count = ends[-1] if ends else 0
    if not 0 <= index < count:
        raise IndexError(f"{unit} {index} of {count}")
    number = bisect_right(ends, index)
    return number, index - (ends[number - 1] if number else 0)


def row_content(rows: Any, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of rows from `start` to `stop`; those of a class without `content` are read one by one."""
    if hasattr(rows, "content"):
        yield from rows.content(start, stop)
        return
    for index in range(start, stop):
        try:
            yield _as_bytes(rows[index])
        except DataError:  # broken in the file
            yield b"\n"


def _as_bytes(row: Row) -> bytes:
    def plain(value: Any) -> Any:
        method = next((name for name in ("tolist", "isoformat", "hex") if hasattr(value, name)), None)
        return getattr(value, method)() if method else type(value).__name__

    return json.dumps(row, default=plain).encode() + b"\n"


def raise_problems(problems: Sequence[str], shown: int = 3) -> None:
    """Raise one DataError for all problems, those after the first `shown` counted only; return if there are none."""
    if problems:
        more = f"; and {len(problems) - shown:,} more" if len(problems) > shown else ""
        raise DataError("; ".join(problems[:shown]) + more)
