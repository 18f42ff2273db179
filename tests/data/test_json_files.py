import json
from pathlib import Path

import pytest

from torchtune_lite.data.json_files import read_json
from torchtune_lite.errors import DataError

ROWS = [{"a": "1"}, {"a": "line\u2028separator\x0b, not a line end"}, {"a": "é市", "b": [1, {"c": None}]}]


def read(path: Path, content: str | bytes, field=None):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, places = read_json(path, field)
    return rows, [place.removeprefix(str(path)) for place in places]


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


GOOD = '{"a": "1"}\n'


@pytest.mark.parametrize(
    "content, message",
    [
        ("", ": 0 samples"),
        (" \n\n", ": 0 samples"),
        ("[]", ": 0 samples"),
        ("[\n]\n", ": 0 samples"),
        (GOOD + "\n" + '{"a" "1"}\n', r":3:6: invalid JSON \(Expecting ':' delimiter\)"),
        (GOOD + '{"a": "1"} {"a": "2"}\n', r":2:12: invalid JSON \(Extra data\)"),
        (GOOD + '{"a": "un', r":2:7: invalid JSON \(Unterminated string"),
        (GOOD + "{'a': 1}\nhello\n" + GOOD, r":2:2: .*; .*:3:1: invalid JSON"),
        ("x\n" * 9, r":1:1: .*:2:1: .*:3:1: .*; and 6 more"),
        (GOOD + "\x00\n", r":2:1: invalid JSON"),
        (GOOD + '{"a": ' + "[" * 200_000 + "\n", r":2:1: invalid JSON \(.*recursion"),
        (GOOD + "[1, 2]\n5\n", r":2: expected an object, got list; .*:3: expected an object, got int"),
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', r":3:2: invalid JSON \(Expecting ',' delimiter\)"),
        ('[{"a": 1},\n {"a": 2}', r":2:10: invalid JSON \(Expecting ',' delimiter\)"),
        ('[{"a": 1},\n]', r":2:1: invalid JSON \(Expecting value\)"),
        ('[{"a": 1}]\nx', r":2:1: invalid JSON \(Extra data\)"),
        ('[{"a": 1},\n\n "b"]', r":3: expected an object, got str"),
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
        ('{"data": []}', ": 0 samples"),
        ('{"data":\n [', r":2:3: invalid JSON"),
    ],
)
def test_names_what_is_wrong_with_a_field(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.json", content, "data")


def test_lines_that_are_no_object_may_be_left_out(tmp_path):
    path, bad = tmp_path / "x.jsonl", []
    path.write_text('{"a": 1}\n{"a": \n\n3\n{"a": 2}\n')
    rows, places = read_json(path, bad=bad)
    assert (rows, places) == ([{"a": 1}, {"a": 2}], [f"{path}:1", f"{path}:5"])
    assert [problem.partition(": ")[0] for problem in bad] == [f"{path}:2:7", f"{path}:4"]
    assert "or set dataset.on_bad_sample=skip" in bad[0]
    path.write_text("3\n")
    with pytest.raises(DataError, match="0 samples .*:1: expected an object, got int"):
        read_json(path, bad=[])


def test_an_array_that_breaks_off_is_an_error_whatever_the_policy(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": 1}, {"a"')
    with pytest.raises(DataError, match="invalid JSON .*; mend the line$"):
        read_json(tmp_path / "x.json", bad=[])
