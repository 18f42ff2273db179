"""JSON files of rows: one object a line, or one array of objects; each row with the line it stands in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtune_lite.data.rows import Row, raise_problems
from torchtune_lite.errors import DataError

_BLANK = re.compile(r"[ \t\r\n]*")

Found = Iterator[tuple[str, Any]]
"""Values of a file and where each stands."""


def read_json(path: Path, field: str | None = None, bad: list[str] | None = None) -> tuple[list[Row], list[str]]:
    """Reads the rows of a file and the place of each (`train.jsonl:143`).

    A file that starts with `[` is an array, any other has one object a line. Blank lines, a byte-order mark and CRLF
    are allowed. `field` reads the array under that key of a file that is one object. Raises DataError naming the lines
    that are no JSON object; where a list `bad` is given, they are noted there and left out. An array that breaks off
    is an error all the same.
    """
    text = _read_text(path)
    rows, places, problems = [], [], []
    if field is not None:
        found = _field(path, text, field)
    else:
        found = _array(path, text) if text.startswith("[", _skip(text, 0)) else _lines(path, text, problems)
    try:
        for place, value in found:
            if isinstance(value, dict):
                rows.append(value)
                places.append(place)
            else:
                problems.append(f"{place}: expected an object, got {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DataError) else DataError(_invalid(path, error)) from None
    if bad is None:
        raise_problems(problems)
    else:
        bad += problems
    if not rows:
        raise DataError(f"{path}: 0 samples" + (f" ({problems[0]})" if problems else ""))
    return rows, places


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; unpack or convert the file"
        ) from None


def _lines(path: Path, text: str, problems: list[str]) -> Found:
    for number, line in enumerate(text.split("\n"), start=1):
        if _skip(line, 0) == len(line):
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            if not problems:
                _refuse_one_object(path, text)
            problems.append(f"{_invalid(path, error, number)}, or set dataset.on_bad_sample=skip")


def _array(path: Path, text: str) -> Found:
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


def _field(path: Path, text: str, field: str) -> Found:
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get(field), list):
        has = f" (has: {', '.join(value)})" if isinstance(value, dict) else ""
        raise DataError(f"{path} has no list under field={field!r}{has}")
    yield from ((f"{path}: {field}[{i}]", row) for i, row in enumerate(value[field]))


def _refuse_one_object(path: Path, text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    raise DataError(
        f"{path} is one object, not rows; name the key that holds its list with field (has: {', '.join(value)})"
    )


def _invalid(path: Path, error: Exception, line: int | None = None) -> str:
    """Says where and why JSON is invalid; a decoding error knows its column, and its line if `line` isn't given."""
    at = f"{path}:{line or getattr(error, 'lineno', 1)}:{getattr(error, 'colno', 1)}"
    return f"{at}: invalid JSON ({getattr(error, 'msg', error)}); mend the line"


def _skip(text: str, index: int) -> int:
    return _BLANK.match(text, index).end()
