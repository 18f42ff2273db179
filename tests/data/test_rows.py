import pytest

from torchtune_lite.data.rows import Rows, raise_problems
from torchtune_lite.errors import DataError


def test_rows_know_their_places():
    rows = Rows("x.jsonl", [{"n": 1}, {"n": 2}], ["x.jsonl:1", "x.jsonl:5"].__getitem__)
    assert (len(rows), rows[1], rows.where(1), rows.name) == (2, {"n": 2}, "x.jsonl:5", "x.jsonl")


def test_problems_become_one_line():
    raise_problems([])
    with pytest.raises(DataError, match="^a; b; c; and 2 more$"):
        raise_problems(list("abcde"))
    with pytest.raises(DataError, match="^a; b; c$"):
        raise_problems(list("abc"))
