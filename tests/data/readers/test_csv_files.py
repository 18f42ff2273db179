import csv
import io
import random

import pytest

from torchtune_lite.data.readers.csv_files import CsvRows
from torchtune_lite.errors import DataError


def rows_of(path, content):
    path.write_bytes(content.encode())
    rows = CsvRows(path)
    return [(int(rows.where(i).rpartition(":")[2]), rows[i]) for i in range(len(rows))]


def test_reads_records_with_quotes_line_ends_and_blank_lines(tmp_path):
    content = '\ufeffq,"the ""a"""\r\n1,"two\r\nlines, a comma"\r\n\r\n"",é\u2028市\n"x\n\n",5\' 2"\n'
    assert rows_of(tmp_path / "x.csv", content) == [
        (2, {"q": "1", 'the "a"': "two\r\nlines, a comma"}),
        (5, {"q": "", 'the "a"': "é\u2028市"}),
        (6, {"q": "x\n\n", 'the "a"': "5' 2\""}),
    ]


def test_tabs_in_tsv(tmp_path):
    assert rows_of(tmp_path / "x.tsv", "a\tb\n1,2\t3") == [(2, {"a": "1,2", "b": "3"})]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_first_line_shows_another_separator(separator, quote, tmp_path, log_lines):
    content = f"\ufeff\r\n{quote}in put{quote}{separator}{quote}output{quote}\nHello, you{separator}Hi\n"
    assert rows_of(tmp_path / "x.csv", content) == [(3, {"in put": "Hello, you", "output": "Hi"})]
    assert log_lines == [f"{tmp_path / 'x.csv'}: its columns are separated by {separator!r}, as its first line shows"]


@pytest.mark.parametrize(
    "name, content, row",
    [
        ("x.csv", "a;b,c\n1,2\n", {"a;b": "1", "c": "2"}),
        ("x.csv", '"a;b"\n1;2\n', {"a;b": "1;2"}),
        ("x.csv", "text\na;b|c\n", {"text": "a;b|c"}),
        ("x.tsv", "a,b\tc\n1\t2\n", {"a,b": "1", "c": "2"}),
    ],
)
def test_the_usual_separator_comes_first_and_one_column_is_one(name, content, row, tmp_path, log_lines):
    assert [row for _, row in rows_of(tmp_path / name, content)] == [row] and log_lines == []


@pytest.mark.parametrize("content", ["", "\n\n", "a,b\n", "\ufeff"])
def test_a_file_may_have_no_rows(tmp_path, content):
    assert rows_of(tmp_path / "x.csv", content) == []


def test_gives_what_the_parser_gives_that_reads_from_the_start(tmp_path):
    draw = random.Random(2)
    table = [["a", "b"]]
    table += [["".join(draw.choice('xé,"\n\r ') for _ in range(draw.randrange(9))) for _ in "ab"] for _ in range(200)]
    written, lines = io.StringIO(newline=""), []
    for values in table:
        lines.append(written.getvalue().count("\n") + 1)
        csv.writer(written).writerow(values)
    found = rows_of(tmp_path / "x.csv", written.getvalue())
    assert [[*row.values()] for _, row in found] == table[1:]
    assert [line for line, _ in found] == lines[1:]


def test_a_long_value(tmp_path):
    assert rows_of(tmp_path / "x.csv", "a\n" + "x" * 200_000)[0][1] == {"a": "x" * 200_000}


@pytest.mark.parametrize(
    "content, message",
    [
        ("a,b\n1\n", "x.csv:2: 1 value for the 2 columns of the first line; quote a value"),
        ("a,b\n1,2\n1,2,3\n", "x.csv:3: 3 values"),
        ('a,b\n1,2\n"open,2\n3,4\n', "x.csv:3: the record that starts here is not valid CSV .unexpected end"),
        ('a,b\n"1"x,2\n', "x.csv:2: the record that starts here is not valid CSV"),
        ("a,b,a\n1,2,3\n", "x.csv:1: two columns are called a; rename one"),
    ],
)
def test_names_the_line_that_is_wrong(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "x.csv", content)


class Name(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)


def test_many_columns_are_not_compared_each_with_each(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("a\n1\n")
    monkeypatch.setattr(CsvRows, "_record", lambda self, number: [Name(f"c{i}") for i in range(500)])
    assert len(CsvRows(tmp_path / "x.csv").columns) == 500
    assert Name.compared < 500


def test_a_broken_record_leaves_the_others_readable(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a\n\xe9\n2\n")
    rows = CsvRows(tmp_path / "x.csv")
    assert rows[1] == {"a": "2"}
    with pytest.raises(DataError, match="x.csv:2: byte 0xe9 is not UTF-8"):
        rows[0]
