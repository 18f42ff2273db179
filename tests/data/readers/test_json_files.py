import json
import pickle
from pathlib import Path

import pytest

from torchtune_lite.data.readers import json_files
from torchtune_lite.data.readers.json_files import json_rows
from torchtune_lite.errors import DataError

ROWS = [{"a": "1"}, {"a": "line\u2028separator\x0b, not a line end"}, {"a": "é市", "b": [1, {"c": None}]}]


def read(path: Path, content: str | bytes, field=None):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = json_rows(path, field)
    return [rows[i] for i in range(len(rows))], [rows.where(i).removeprefix(str(path)) for i in range(len(rows))]


@pytest.mark.parametrize(
    "content, lines",
    [
        ("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), [1, 2, 3]),
        ("\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n", [1, 2, 3]),
        ("\n \t\n" + "\n\n".join(json.dumps(row) for row in ROWS) + "\n\n", [3, 5, 7]),
        (json.dumps(ROWS), [1, 1, 1]),
        ("\ufeff\n " + json.dumps(ROWS, indent=2).replace("\n", "\r\n") + "\n", [3, 6, 9]),
        ("[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]", [2, 3, 4]),
    ],
    ids=["lines", "bom and crlf", "blank lines", "array", "indented array", "array of lines"],
)
def test_reads_rows_and_their_physical_lines(tmp_path, content, lines):
    rows, places = read(tmp_path / "x.json", content)
    assert rows == ROWS
    assert places == [f":{line}" for line in lines]


def test_reads_the_list_under_a_field(tmp_path):
    rows, places = read(tmp_path / "x.json", json.dumps({"version": 1, "data": ROWS}), "data")
    assert rows == ROWS and places == [": data[0]", ": data[1]", ": data[2]"]


def test_objects_may_go_over_several_lines(tmp_path):
    content = "".join(json.dumps(row, indent=2, ensure_ascii=False) + "\n" for row in ROWS)
    rows, places = read(tmp_path / "x.jsonl", "\ufeff\n" + content)
    assert rows == ROWS and places == [":2", ":5", ":8"]


GOOD = '{"a": "1"}\n'


@pytest.mark.parametrize(
    "content, message",
    [
        (GOOD + "\n" + '{"a" "1"}\n', r":3:6: invalid JSON \(Expecting ':' delimiter\)"),
        (GOOD + '{"a": "1"} {"a": "2"}\n', r":2:12: invalid JSON \(Extra data\)"),
        (GOOD + '{"a": "un', r":2:7: invalid JSON \(Unterminated string"),
        (GOOD + "{'a': 1}\nhello\n" + GOOD, r":2:2: invalid JSON .*, or set dataset.on_bad_sample=skip$"),
        (GOOD + "\x00\n", r":2:1: invalid JSON"),
        (GOOD + '{"a": ' + "[" * 200_000 + "\n", r":2:1: invalid JSON \(.*recursion"),
        (GOOD + "[1, 2]\n5\n", ":2: expected an object, got list$"),
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', r":3:2: invalid JSON \(Expecting ',' delimiter\)"),
        ('[{"a": 1},\n {"a": 2}', r":2:10: invalid JSON \(Expecting ',' delimiter\)"),
        ('[{"a": 1},\n]', r":2:1: invalid JSON \(Expecting value\)"),
        ('[{"a": 1}]\nx', r":2:1: invalid JSON \(Extra data\)"),
        ('[{"a": 1},\n\n "b"]', r":3: expected an object, got str"),
        (
            '[{"a": 1}]\n[{"a": 2}]\n',
            r': each line is a list, .* give the list a name: {"messages": \[...\]}, one a line',
        ),
        ('{\n "version": 1,\n "data": [{"a": 1}]\n}', r"is one object, not rows; .* field \(has: version, data\)"),
        (GOOD.encode() + b'{"a": "\xe9"}', r":2: byte 0xe9 is not UTF-8"),
        (b"\x1f\x8b\x08", r":1: byte 0x8b is not UTF-8; unpack or convert"),
    ],
)
def test_names_the_file_and_line_of_what_it_cannot_read(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    with pytest.raises(DataError, match=message) as error:
        read(path, content)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"rows": [], "other": 1}', r"has no list under field='data' \(has: rows, other\)"),
        ('{"data": {"a": 1}}', "has no list under field='data'"),
        ("[1]", "has no list under field='data'$"),
        ('{"data": [1]}', r"data\[0\]: expected an object, got int"),
        ('{"data":\n [', r":2:3: invalid JSON"),
    ],
)
def test_names_what_is_wrong_with_a_field(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.json", content, "data")


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff", "\ufeff\r\n", "[]", "[\n]\n"])
def test_a_file_may_have_no_rows(tmp_path, content):
    assert read(tmp_path / "x.json", content) == ([], [])


def test_a_broken_line_leaves_the_others_readable(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n\n3\n{"a": 2}\n')
    rows = json_rows(path)
    assert (len(rows), rows[0], rows[3], rows.where(3)) == (4, {"a": 1}, {"a": 2}, f"{path}:5")
    for row, place in ((1, ":2:7: "), (2, ":4: ")):
        with pytest.raises(DataError, match=place):
            rows[row]


def test_rows_of_lines_can_be_sent_to_another_process(tmp_path):
    (tmp_path / "x.jsonl").write_text('\n{"a": 1}\n')
    rows = pickle.loads(pickle.dumps(json_rows(tmp_path / "x.jsonl")))
    assert (rows[0], rows.where(0)) == ({"a": 1}, f"{tmp_path / 'x.jsonl'}:2")


def test_a_large_array_gets_a_warning(tmp_path, monkeypatch, log_lines):
    monkeypatch.setattr(json_files, "LARGE_ARRAY", 8)
    read(tmp_path / "x.json", json.dumps(ROWS))
    assert "is read into memory whole; one object a line is not" in log_lines[0]
    read(tmp_path / "x.jsonl", "\n".join(map(json.dumps, ROWS)))
    assert len(log_lines) == 1
