"""JSON files of rows: one object a line, or one array of objects; each row with the line it stands in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtune_lite.data.byte_files import ByteFile
from torchtune_lite.data.line_index import BOM, LineIndex
from torchtune_lite.data.rows import Row, Rows
from torchtune_lite.errors import DataError
from torchtune_lite.utils import get_logger

log = get_logger()

LARGE_ARRAY = 2**30  # bytes from which an array, which is read whole, gets a warning
MOST_OF_ONE_OBJECT = 2**26  # bytes up to which a file whose first line is no JSON is tried as a whole

_BLANK = re.compile(r"[ \t\r\n]*")

Found = Iterator[tuple[str, Any]]
"""Values of a file and where each stands."""


def json_rows(path: Path, field: str | None = None) -> Any:
    """Gives the rows of a file: an array where it starts with `[`, else one object a line.

    Blank lines, a byte-order mark and CRLF are allowed. `field` reads the array under that key of a file that is one
    object. Arrays are read whole, lines when they are asked for.
    """
    file = ByteFile(path)
    head = file.read(0, 2**16).removeprefix(BOM).lstrip(b" \t\r\n")
    return array_rows(file, field) if field is not None or head.startswith(b"[") else JsonLines(file)


class JsonLines:
    """The objects of a file, one a line, each read when it is asked for.

    Reading one that is no JSON object raises DataError naming its line and column.
    """

    def __init__(self, file: ByteFile) -> None:
        self.name, self.num_bytes, self._lines = file.path, file.size, LineIndex(file)
        self.where, self.content = self._lines.place, self._lines.content
        if len(self) and file.size <= MOST_OF_ONE_OBJECT:
            _refuse_one_object(file, self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Row:
        try:
            row = json.loads(self._lines.text(index))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            place = f"{self.where(index)}:{getattr(error, 'colno', 1)}"
            raise DataError(f"{_invalid(place, error)}, or set dataset.on_bad_sample=skip") from None
        return _object(row, self.where(index))


def array_rows(file: ByteFile, field: str | None = None) -> Rows:
    """Reads an array of objects, at the top of a file or under its key `field`.

    Raises DataError where the array breaks off.
    """
    path = file.path
    if file.size > LARGE_ARRAY:
        log.warning(f"{path}: {file.size / 1e9:.1f} GB of one array, read into memory whole; one object a line is not")
    data = file.read().removeprefix(BOM)
    try:
        text = data.decode()
        found = list(_array(path, text) if field is None else _field(path, text, field))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file") from None
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
    if index < len(text):
        raise json.JSONDecodeError("Extra data", text, index)


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


def _refuse_one_object(file: ByteFile, lines: LineIndex) -> None:
    """Raises DataError for an object that is written over several lines, with the keys it has."""
    try:
        json.loads(lines.text(0))
        return
    except (ValueError, RecursionError):
        pass
    try:
        value = json.loads(file.read().removeprefix(BOM))
    except (ValueError, RecursionError):
        return
    raise DataError(
        f"{file.path} is one object, not rows; name the key that holds its list with field (has: {', '.join(value)})"
    )


def _invalid(place: str, error: Exception) -> str:
    return f"{place}: invalid JSON ({getattr(error, 'msg', error)}); mend the line"


def _skip(text: str, index: int) -> int:
    return _BLANK.match(text, index).end()
