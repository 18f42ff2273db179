"""CSV and TSV files: a first line of column names, then a row a record; every value is text."""

import csv
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.data.readers.encodings import check_encoding, check_line_ends, not_utf8
from torchtune_lite.data.readers.line_index import BOM
from torchtune_lite.data.readers.rows import Row
from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted, get_logger

log = get_logger()

DELIMITERS = ",;\t|"


class CsvRows:
    """The records of a file, each read when it is asked for; a quoted value may go over several lines.

    Values are separated by tabs where the name ends in .tsv, else by commas, or by what alone divides the first line
    into columns; they are quoted with `"` as in RFC 4180. Raises DataError where the quotes are wrong or two columns
    have one name; reading a record of another length does too.
    """

    def __init__(self, path: Path) -> None:
        self._file = ByteFile(path)
        self.name, self.num_bytes = self._file.path, self._file.size
        self._delimiter = self._find_delimiter("\t" if ".tsv" in path.suffixes[-2:] else ",")
        self._starts, self._numbers = array("q"), array("L")  # of each record: its first byte and line
        csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise, for the whole process
        self._find_records()
        self.columns = self._record(0) if self._starts else []
        twice = sorted(column for column, count in Counter(self.columns).items() if count > 1)
        if twice:
            raise DataError(f"{self.where(-1)}: two columns are called {', '.join(twice)}; rename one")

    def __len__(self) -> int:
        return max(len(self._starts) - 1, 0)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        values = self._record(index + 1)
        if len(values) != len(self.columns):
            found, needed = counted(len(values), "value"), counted(len(self.columns), "column")
            raise DataError(
                f"{self.where(index)}: {found} for the {needed} of the first line; "
                "quote a value that holds the separator, or set dataset.on_bad_sample=skip"
            )
        return dict(zip(self.columns, values, strict=True))

    def where(self, index: int) -> str:
        """Say in which line a row starts."""
        return f"{self.name}:{self._numbers[index + 1]}"

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of the rows from `start` to `stop`."""
        end = self._starts[stop + 1] if stop < len(self) else None
        return self._file.chunks(start=self._starts[start + 1], stop=end)

    def _find_delimiter(self, usual: str) -> str:
        """Choose what separates the columns by the first line: the usual character unless it makes them one."""
        head = self._file.read(0, 2**16)
        check_encoding(self.name, head)
        check_line_ends(self.name, head)
        header = head.removeprefix(BOM).lstrip(b"\r\n").partition(b"\n")[0].decode(errors="replace")
        columns = {delimiter: _num_columns(header, delimiter) for delimiter in (usual, *DELIMITERS)}
        most = max(columns, key=columns.__getitem__)
        if columns[usual] > 1 or columns[most] < 2:
            return usual
        log.info(f"{self.name}: its columns are separated by {most!r}, as its first line shows")
        return most

    def _find_records(self) -> None:
        """Note where each record starts, as the parser that reads it later has it."""
        offset = 0

        def lines() -> Iterator[str]:
            nonlocal offset
            for line in self._file.lines():
                offset += len(line)
                yield (line.removeprefix(BOM) if offset == len(line) else line).decode(errors="surrogateescape")

        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        start, number = 0, 1
        try:
            for record in reader:
                if record:
                    self._starts.append(start)
                    self._numbers.append(number)
                start, number = offset, reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{self.name}:{number}: the record that starts here is not valid CSV ({error}); fix its quotes"
            ) from None

    def _record(self, number: int) -> list[str]:
        stop = self._starts[number + 1] if number + 1 < len(self._starts) else None
        data = self._file.read(self._starts[number], stop)
        try:
            text = data.removeprefix(BOM).decode() if number == 0 else data.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.where(number - 1), data, error) from None
        return next(csv.reader(StringIO(text, newline="\n"), delimiter=self._delimiter, strict=True))


def _num_columns(line: str, delimiter: str) -> int:
    """Count the columns of a line; 0 where its quotes are wrong by that delimiter."""
    try:
        return len(next(csv.reader([line], delimiter=delimiter, strict=True)))
    except csv.Error:
        return 0
