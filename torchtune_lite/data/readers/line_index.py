"""The starts of the lines of a file, found without keeping the file."""

from collections.abc import Iterator

import numpy as np

from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.data.readers.encodings import check_encoding, check_line_ends, not_utf8

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"


class LineIndex:
    """The lines of a file that are not blank: eight bytes of memory each, sixteen where some are blank.

    A byte-order mark is left out. `place(i)` is the file and the number of the line in it (`train.jsonl:143`).
    """

    def __init__(self, file: ByteFile) -> None:
        self.file = file
        head = file.read(0, 2**16)
        check_encoding(file.path, head)
        check_line_ends(file.path, head)
        starts, first_bytes = _starts(file)
        kept = np.ones(len(starts), bool)
        for i in np.flatnonzero(np.isin(first_bytes, np.frombuffer(BLANK, np.uint8))):
            kept[i] = first_bytes[i] != 10 and self._line(starts, int(i)).strip(BLANK) != b""
        self._numbers = None if kept.all() else np.flatnonzero(kept)
        self._starts = starts if kept.all() else starts[kept]

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, index: int) -> str:
        """Say where a line stands."""
        return f"{self.file.path}:{index + 1 if self._numbers is None else int(self._numbers[index]) + 1}"

    def text(self, index: int) -> str:
        """Read a line, without its end; raise DataError where it is not UTF-8."""
        line = self._line(self._starts, index)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.place(index), line, error) from None

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of the lines from `start` to `stop`, the last one ending as the others do."""
        end = int(self._starts[stop]) if stop < len(self) else self.file.size
        chunk = b""
        for chunk in self.file.chunks(start=int(self._starts[start]), stop=end):
            yield chunk
        if not chunk.endswith(b"\n"):
            yield b"\n"

    def _line(self, starts: np.ndarray, index: int) -> bytes:
        if not 0 <= index < len(starts):
            raise IndexError(f"line {index} of {len(starts)}")
        stop = int(starts[index + 1]) if index + 1 < len(starts) else None
        return self.file.read(int(starts[index]), stop).partition(b"\n")[0]  # blank lines may follow


def _starts(file: ByteFile) -> tuple[np.ndarray, np.ndarray]:
    """Return the offset of each line and the byte there."""
    starts, first_bytes = [], []
    offset, pending = 0, [0]
    for chunk in file.chunks():
        if offset == 0 and chunk.startswith(BOM):
            pending = [len(BOM)]
        codes = np.frombuffer(chunk, np.uint8)
        found = np.concatenate([np.array(pending, np.int64), np.flatnonzero(codes == 10) + offset + 1])
        pending = found[-1:].tolist() if len(found) and found[-1] == offset + len(chunk) else []
        found = found[: len(found) - len(pending)]
        starts.append(found)
        first_bytes.append(codes[found - offset])
        offset += len(chunk)
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *starts]), np.concatenate([empty.astype(np.uint8), *first_bytes])
