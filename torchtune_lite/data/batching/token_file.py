"""Samples that are too long to be made again for each part of them that is read."""

import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from typing import IO, Any

from torchtune_lite.errors import DataError

SIZE = array("i").itemsize


class TokenFile:
    """Tokens and labels of samples by number, in a file without a name that ends with the process.

    The file is there from the first sample on; `size` is its bytes, eight for a token. A copy in a process that is not
    forked is empty.
    """

    def __init__(self) -> None:
        self.size = 0
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}  # first byte, tokens

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __getstate__(self) -> dict[str, Any]:
        return vars(TokenFile())

    def add(self, number: int, sample: Mapping[str, Sequence[int]]) -> None:
        """Write a sample; DataError where there is no room for it."""
        folder = tempfile.gettempdir()
        data = array("i", sample["tokens"]).tobytes() + array("i", sample["labels"]).tobytes()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the samples)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"the tokens of long samples cannot be kept in {folder} ({error.strerror or error}); "
                "TMPDIR names another folder"
            ) from None
        self._places[number] = self.size, len(sample["tokens"])
        self.size += len(data)

    def part(self, number: int, start: int, stop: int) -> dict[str, list[int]]:
        """Read the tokens and labels of a sample from `start` to `stop`, and nothing else."""
        place, length = self._places[number]
        stop = min(stop, length)
        tokens, labels = (
            array("i", os.pread(self._file.fileno(), (stop - start) * SIZE, first + start * SIZE)).tolist()
            for first in (place, place + length * SIZE)
        )
        return {"tokens": tokens, "labels": labels}
