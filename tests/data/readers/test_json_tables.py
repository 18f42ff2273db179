import json

import pytest

from torchtune_lite.data.readers.json_files import json_rows
from torchtune_lite.data.readers.json_tables import table_rows

ROWS = [{"input": "Hi", "output": "Hello"}, {"input": "Bye", "output": "1"}, {"input": "é", "output": "x"}]
FORMS = {  # what pandas.DataFrame(ROWS).to_json(orient=…) writes, and to_dict("list")
    "columns": {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]},
    "index": {str(i): row for i, row in enumerate(ROWS)},
    "split": {"columns": ["input", "output"], "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
    "list": {name: [row[name] for row in ROWS] for name in ROWS[0]},
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_as_its_rows(form, indent, tmp_path, log_lines):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(FORMS[form], indent=indent))
    rows = json_rows(path)
    assert [rows[i] for i in range(len(rows))] == ROWS
    assert rows.where(1) == f"{path}[1]" and log_lines == [f"{path}: one table, read as 3 rows"]


def test_columns_may_hold_anything_and_rows_any_number():
    cells = {"messages": {"7": [{"role": "user"}]}, "id": {"7": 3}}
    assert table_rows(cells) == [{"messages": [{"role": "user"}], "id": 3}]
    assert table_rows({"a": ["x"], "b": [None]}) == [{"a": "x", "b": None}]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"a": "x"},
        {"a": {}},
        {"a": {"b": "x"}, "c": {"b": "y"}},
        {"a": {"0": "x"}, "b": {"1": "y"}},
        {"a": {"0": "x"}, "b": "y"},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user"}], "tools": [{"type": "function"}]},
        {"tokens": [1, 2], "labels": [2, -100]},
        {"a": ["x", "y"]},
        {"a": ["x", "y"], "b": ["z"]},
        {"columns": ["a"], "data": [["x", "y"]]},
        {"columns": ["a"], "data": "x"},
        [ROWS],
        "x",
    ],
)
def test_what_may_be_a_row_stays_one(row):
    assert table_rows(row) is None
