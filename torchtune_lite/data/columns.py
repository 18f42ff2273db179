"""Columns of a row: by name, or by a dotted path into what is nested (`data.question`, `choices.0.text`)."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torchtune_lite.errors import ConfigError, DataError

NOT_READ, AS_TEXT = "not read", "numbers, true and false read as text"


class Note(NamedTuple):
    """A note said once for all rows: a heading, and its subject; dropped if the chat template reads `field`."""

    heading: str
    subject: str
    field: str = ""


def checked_column_map(column_map: Mapping[str, str] | None, names: Sequence[str]) -> dict[str, str]:
    """Return the file's column for each of `names`: itself where `column_map` has none; ConfigError for another key."""
    unknown = [str(name) for name in column_map or () if name not in names]
    if unknown:
        raise ConfigError(f"column_map has unknown keys {', '.join(unknown)}; its keys are {', '.join(names)}")
    return {name: (column_map or {}).get(name, name) for name in names}


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Return whether a row has a column."""
    return _find(row, column)[1] is None


def column_value(row: Mapping[str, Any], column: str, setting: str) -> Any:
    """Read a column; DataError lists the columns there are and names the `setting` that chooses another."""
    value, missing = _find(row, column)
    if missing is not None:
        within = f" of {column!r}" if missing != column else ""
        raise DataError(f"missing column {missing!r}{within} (has: {_has(value)}); set {setting} to the one you mean")
    return value


def column_text(row: Mapping[str, Any], column: str, setting: str, notes: set[Note]) -> str:
    """Read a column of text."""
    where = f"column {column!r}"
    return as_text(column_value(row, column, setting), where, where, notes)


def as_text(value: Any, where: str, subject: str, notes: set[Note]) -> str:
    """Return text as it is, and a number or truth value as JSON writes it, which is noted with its `subject`."""
    if isinstance(value, int | float) and value == value:  # nan is what stands for nothing
        notes.add(Note(AS_TEXT, subject))
        return json.dumps(value)
    return check_text(value, where)


def check_text(value: Any, where: str) -> str:
    """Return `value` if it is text that UTF-8 can carry, else raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{where} must be text, got {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half a surrogate pair at character {error.start + 1}; fix the escape") from None
    return value


def kind(value: Any) -> str:
    """Name the type of a value as JSON does where it is null."""
    return "null" if value is None else "nan" if value != value else type(value).__name__


def unread(row: Mapping[str, Any], columns: Iterable[str]) -> set[Note]:
    """Note the columns of a row that are not null and not among those that are read, by name or by path."""
    read = {name for column in columns for name in (column, column.partition(".")[0])}
    return {Note(NOT_READ, f"column {name!r}") for name in row if name not in read and row[name] is not None}


def summarized(notes: Counter[Note], reads: Callable[[str], bool]) -> str:
    """Say what was noted of how many rows; `reads` tells which fields a chat template reads."""
    by_heading: dict[str, list[str]] = {}
    for note, count in sorted(notes.items()):
        if not (note.field and reads(note.field)):
            rows = f"{count:,} row{'s' * (count > 1)}"
            by_heading.setdefault(note.heading, []).append(f"{note.subject} ({rows})")
    return "; ".join(f"{heading}: {', '.join(each)}" for heading, each in by_heading.items())


def _find(row: Any, column: str) -> tuple[Any, str | None]:
    """Return the value of a column; or what lacks the first part of its path that is not there, and that part."""
    if column in row or "." not in column:
        return (row[column], None) if column in row else (row, column)
    value = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return value, part
    return value, None


def _has(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))
    return f"a list of {len(value)}" if isinstance(value, list) else kind(value)
