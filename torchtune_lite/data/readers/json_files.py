"""JSON files of rows: one object a line, one array of objects, or one table; each row with the line it stands in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.data.readers.encodings import check_encoding, not_utf8
from torchtune_lite.data.readers.json_tables import table_rows
from torchtune_lite.data.readers.line_index import BOM, LineIndex
from torchtune_lite.data.readers.rows import Row, Rows
from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted, get_logger

log = get_logger()

LARGE_ARRAY = 2**30  # bytes from which an array, which is read whole, gets a warning
MOST_OF_ONE_OBJECT = 2**26  # bytes up to which a file whose first line is not JSON is tried as a whole

_BLANK = re.compile(r"[ \t\r\n]*")

Found = Iterator[tuple[str, Any]]
"""Values of a file and where each stands."""


def json_rows(path: Path, field: str | None = None) -> Any:
    """Return the rows of a file: an array where it starts with `[`, else one object a line.

    Blank lines, a byte-order mark and CRLF are allowed. `field` reads the array under that key of a file that is one
    object. Read whole are arrays, a table (`json_tables`), and objects that go over several lines, which may take
    `MOST_OF_ONE_OBJECT` bytes; lines are read when they are asked for.
    """
    file = ByteFile(path)
    head = file.read(0, 2**16).removeprefix(BOM).lstrip(b" \t\r\n")
    if field is not None or head.startswith(b"["):
        return array_rows(file, field)
    lines = JsonLines(file)
    whole = _whole_rows(file, lines) if len(lines) else None
    return lines if whole is None else whole


class JsonLines:
    """The objects of a file, one a line, each read when it is asked for.

    Reading one that is not a JSON object raises DataError naming its line and column.
    """

    def __init__(self, file: ByteFile) -> None:
        self.name, self.num_bytes, self._lines = file.path, file.size, LineIndex(file)
        self.where, self.content = self._lines.place, self._lines.content

    def __len__(self) -> int:
        return len(self._lines)

    def text(self, index: int) -> str:
        """Read a line."""
        return self._lines.text(index)

    def __getitem__(self, index: int) -> Row:
        try:
            row = json.loads(self.text(index))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            place = f"{self.where(index)}:{getattr(error, 'colno', 1)}"
            raise DataError(f"{_invalid(place, error)}, or set dataset.on_bad_sample=skip") from None
        return _object(row, self.where(index))


def array_rows(file: ByteFile, field: str | None = None) -> Rows:
    """Read an array of objects, at the top of a file or under its key `field`.

    Raise DataError where the array breaks off.
    """
    path = file.path
    if file.size > LARGE_ARRAY:
        log.warning(f"{path}: an array of {file.size / 1e9:.1f} GB is read into memory whole; one object a line is not")
    data = file.read().removeprefix(BOM)
    check_encoding(path, data)
    try:
        text = data.decode()
        found = list(_array(path, text) if field is None else _field(path, text, field))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_utf8(f"{path}:{line}", data, error) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(_invalid(f"{path}:{getattr(error, 'lineno', 1)}:{getattr(error, 'colno', 1)}", error)) from None
    places = [place for place, _ in found]
    return _Array(path, [value for _, value in found], places.__getitem__, file.size)


class _Array(Rows):
    def __getitem__(self, index: int) -> Row:
        return _object(self._rows[index], self.where(index))


def _array(path: str, text: str) -> Found:
    decode = json.JSONDecoder().raw_decode
    index = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while not text.startswith("]", index):
        line, counted = line + text.count("\n", counted, index), index
        value, index = decode(text, index)
        yield f"{path}:{line}", value
        index = _skip(text, index)
        if text.startswith(",", index):
            index = _skip(text, index + 1)
            if text.startswith("]", index):
                raise json.JSONDecodeError("Expecting value", text, index)
        elif not text.startswith("]", index):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, index)
    index = _skip(text, index + 1)
    if text.startswith("[", index):
        raise DataError(
            f"{path}: each line is a list, and a row must be an object; give the list a name: "
            '{"messages": [...]}, one a line'
        )
    if index < len(text):
        raise json.JSONDecodeError("Extra data", text, index)


def _values(path: str, text: str) -> Found:
    """Values that stand one after the other, whatever the lines."""
    decode = json.JSONDecoder().raw_decode
    index = _skip(text, 0)
    line, counted = 1, 0
    while index < len(text):
        line, counted = line + text.count("\n", counted, index), index
        value, index = decode(text, index)
        yield f"{path}:{line}", value
        index = _skip(text, index)


def _field(path: str, text: str, field: str) -> Found:
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get(field), list):
        has = f" (has: {', '.join(value)})" if isinstance(value, dict) else ""
        raise DataError(f"{path} has no list under field={field!r}{has}")
    yield from ((f"{path}: {field}[{i}]", row) for i, row in enumerate(value[field]))


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _whole_rows(file: ByteFile, lines: JsonLines) -> Rows | None:
    """Read a file that is not a list of lines; return None if it is one, or not JSON.

    Raise DataError for one object that is not a table, with the keys it has.
    """
    try:
        found, in_a_line = [(lines.where(0), json.loads(lines.text(0)))], True
    except (ValueError, RecursionError):
        in_a_line = False
    if len(lines) > 1 if in_a_line else file.size > MOST_OF_ONE_OBJECT:
        return None
    if not in_a_line:
        try:
            found = list(_values(file.path, file.read().removeprefix(BOM).decode()))
        except (ValueError, RecursionError):
            return None
    [(_, first), *more] = found
    table = None if more else table_rows(first)
    if table is not None:
        log.info(f"{file.path}: one table, read as {counted(len(table), 'row')}")
        return _Array(file.path, table, f"{file.path}[{{}}]".format, file.size)
    if in_a_line:
        return None
    if not more and isinstance(first, dict):
        has = ", ".join(first)
        raise DataError(
            f"{file.path} is one object, not rows; name the key that holds its list with field (has: {has})"
        )
    return _Array(file.path, [row for _, row in found], [place for place, _ in found].__getitem__, file.size)


def _invalid(place: str, error: Exception) -> str:
    return f"{place}: invalid JSON ({getattr(error, 'msg', error)}); fix the line"


def _skip(text: str, index: int) -> int:
    return _BLANK.match(text, index).end()
