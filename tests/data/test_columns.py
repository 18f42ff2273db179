import math
from collections import Counter

import pytest

from torchtune_lite.data.columns import (
    AS_TEXT,
    NOT_READ,
    Note,
    checked_column_map,
    column_text,
    column_value,
    has_column,
    summarized,
    unread,
)
from torchtune_lite.errors import ConfigError, DataError

ROW = {"a": "x", "b": {"c": [{"d": "y"}, None], "é": 1}, "b.c": "by its own name", "n": None}


@pytest.mark.parametrize(
    "column, value", [("a", "x"), ("b.c", "by its own name"), ("b.c.0.d", "y"), ("b.c.1", None), ("b.é", 1)]
)
def test_reads_a_column_by_name_or_path(column, value):
    assert column_value(ROW, column, "key") == value and has_column(ROW, column)


@pytest.mark.parametrize(
    "column, message",
    [
        ("x", r"^missing column 'x' \(has: a, b, b.c, n\); set key to the one you mean$"),
        ("b.x", r"^missing column 'x' of 'b.x' \(has: c, é\)"),
        ("b.c.2.d", r"^missing column '2' of 'b.c.2.d' \(has: a list of 2\)"),
        ("b.c.d", r"^missing column 'd' of 'b.c.d' \(has: a list of 2\)"),
        ("a.b", r"^missing column 'b' of 'a.b' \(has: str\)"),
        ("n.b", r"^missing column 'b' of 'n.b' \(has: null\)"),
    ],
)
def test_names_the_part_that_is_missing(column, message):
    assert not has_column(ROW, column)
    with pytest.raises(DataError, match=message):
        column_value(ROW, column, "key")


def test_text_is_text():
    notes = set()
    assert column_text(ROW, "b.c.0.d", "key", notes) == "y" and not notes
    for column, found in (("b.c", "list"), ("n", "null")):
        with pytest.raises(DataError, match=f"column '{column}' must be text, got {found}"):
            column_text(ROW | {"b.c": []}, column, "key", notes)


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (-1.5, "-1.5"), (True, "true"), (False, "false"), (1e22, "1e+22"), (2**70, f"{2**70}")]
)
def test_numbers_and_truth_values_are_read_as_json_writes_them(value, text):
    notes = set()
    assert column_text({"a": value}, "a", "key", notes) == text
    assert notes == {Note(AS_TEXT, "column 'a'")}
    with pytest.raises(DataError, match="column 'a' must be text, got nan"):
        column_text({"a": math.nan}, "a", "key", notes)


def test_columns_that_are_not_read_are_noted():
    row = {"a": "x", "b": {"c": "y", "d": "z"}, "e.f": "t", "g": "u", "h": None, "i": 0}
    assert unread(row, ["a", "b.c", "e.f"]) == {Note(NOT_READ, "column 'g'"), Note(NOT_READ, "column 'i'")}


def test_notes_are_said_in_one_line():
    notes = Counter({Note(NOT_READ, "column 'a'"): 1200, Note(NOT_READ, "'name' of a turn", "name"): 1})
    notes[Note(AS_TEXT, "column 'b'")] = 2
    assert summarized(notes, lambda field: False) == (
        "not read: 'name' of a turn (1 row), column 'a' (1,200 rows); "
        "numbers, true and false read as text: column 'b' (2 rows)"
    )
    assert "name" not in summarized(notes, lambda field: field == "name")
    assert summarized(Counter(), lambda field: False) == ""


def test_refuses_an_unknown_key_of_column_map():
    assert checked_column_map({"input": "q"}, ("input", "output")) == {"input": "q", "output": "output"}
    with pytest.raises(ConfigError, match="unknown keys question; its keys are input, output"):
        checked_column_map({"question": "input"}, ("input", "output"))
