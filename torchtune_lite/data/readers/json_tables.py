"""Tables that are written as one JSON object: the forms of pandas' `to_json` and of columns of lists."""

from collections.abc import Collection, Mapping
from typing import Any

from torchtune_lite.data.readers.rows import Row


def table_rows(value: Any) -> list[Row] | None:
    """Return the rows of an object that can only be a table; None for any other value.

    Those are columns of cells by row number (`{"a": {"0": "x"}}`), rows by number (`{"0": {"a": "x"}}`), `columns` with
    their `data`, and two or more columns that are lists of one length with text in them.
    """
    if not isinstance(value, Mapping) or not value:
        return None
    if {"columns", "data"} <= set(value) <= {"columns", "index", "data"}:
        names, rows = value["columns"], value["data"]
        fits = isinstance(names, list) and all(isinstance(cells, list) and len(cells) == len(names) for cells in rows)
        return [dict(zip(names, cells, strict=True)) for cells in rows] if fits else None
    columns = list(value.values())
    if all(isinstance(column, Mapping) for column in columns):
        numbers = list(columns[0])
        if _numbered(numbers) and all(list(column) == numbers for column in columns):
            return [{name: column[number] for name, column in value.items()} for number in numbers]
        return columns if _numbered(value) else None
    if len(columns) > 1 and all(map(_is_cells, columns)) and len(set(map(len, columns))) == 1:
        rows = [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
        return rows if any(isinstance(cell, str) for row in rows for cell in row.values()) else None
    return None


def _numbered(keys: Collection[str]) -> bool:
    return len(keys) > 0 and all(key.isdecimal() for key in keys)


def _is_cells(column: Any) -> bool:
    """Tell a column from the list of a single row, as its messages are; one of token ids has no text."""
    return isinstance(column, list) and all(cell is None or isinstance(cell, str | int | float) for cell in column)
