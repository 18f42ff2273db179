import pytest

from torchtune_lite.data.columns import checked_column_map, column_text, column_value, has_column
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
        ("x", r"^missing column 'x' \(has: a, b, b.c, n\); set key to the one that is meant$"),
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
    assert column_text(ROW, "b.c.0.d", "key") == "y"
    with pytest.raises(DataError, match="column 'b.é' must be text, got int"):
        column_text(ROW, "b.é", "key")


def test_refuses_an_unknown_key_of_column_map():
    assert checked_column_map({"input": "q"}, ("input", "output")) == {"input": "q", "output": "output"}
    with pytest.raises(ConfigError, match="unknown keys question; its keys are input, output"):
        checked_column_map({"question": "input"}, ("input", "output"))
