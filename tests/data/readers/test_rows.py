import pytest

from torchtune_lite.data.readers.rows import JoinedRows, MarkedRows, Rows, SelectedRows, raise_problems
from torchtune_lite.errors import DataError


def test_rows_know_their_places():
    rows = Rows("x.jsonl", [{"n": 1}, {"n": 2}], ["x.jsonl:1", "x.jsonl:5"].__getitem__)
    assert (len(rows), rows[1], rows.where(1), rows.name) == (2, {"n": 2}, "x.jsonl:5", "x.jsonl")


def numbered(name, count):
    return Rows(name, list(range(count)), f"{name}:{{}}".format, num_bytes=10 * count)


def test_rows_of_several_files_one_after_the_other():
    rows = JoinedRows([numbered("a", 2), numbered("b", 1), numbered("c", 3)])
    assert [(rows[i], rows.where(i)) for i in (0, 1, 2, 3, 5)] == [
        (0, "a:0"),
        (1, "a:1"),
        (0, "b:0"),
        (0, "c:0"),
        (2, "c:2"),
    ]
    assert (len(rows), rows.name, rows.num_bytes) == (6, "a and 2 more files", 60)
    for index in (6, -1):
        with pytest.raises(IndexError):
            rows[index]


def test_some_rows():
    rows = SelectedRows(numbered("a", 10), [7, 3])
    assert (len(rows), rows[0], rows.where(1), rows.name, rows.num_bytes) == (2, 7, "a:3", "a", 20)


def test_marks_rows():
    marked = MarkedRows(5)
    assert not marked and list(marked) == []
    for row in (4, 0, 3, 0):
        marked.add(row)
    assert (list(marked), len(marked), 3 in marked, 2 in marked) == ([0, 3, 4], 3, True, False)


def test_problems_become_one_line():
    raise_problems([])
    with pytest.raises(DataError, match="^a; b; c; and 2 more$"):
        raise_problems(list("abcde"))
    with pytest.raises(DataError, match="^a; b; c$"):
        raise_problems(list("abc"))
