import pytest

from torchtune_lite.data import Rows, checked_rows
from torchtune_lite.data.checked_rows import is_small, some_rows


def rows(count, num_bytes):
    return Rows("x.jsonl", [{}] * count, str, num_bytes)


@pytest.mark.parametrize(("count", "num_bytes", "small"), [(5, 10, True), (6, 10, False), (5, 11, False), (0, 0, True)])
def test_a_data_set_is_small_by_rows_and_by_bytes(count, num_bytes, small, monkeypatch):
    monkeypatch.setattr(checked_rows, "CHECKED_WHOLE", {"rows": 5, "bytes": 10})
    assert is_small(rows(count, num_bytes)) is small


def test_the_first_rows_are_checked_and_some_evenly_spread(monkeypatch):
    monkeypatch.setattr(checked_rows, "CHECKED_WHOLE", {"rows": 5, "bytes": 100})
    monkeypatch.setattr(checked_rows, "CHECKED_FIRST", 3)
    monkeypatch.setattr(checked_rows, "CHECKED_SPREAD", 4)
    assert some_rows(rows(40, 0)) == [0, 1, 2, 10, 20, 30]
    assert some_rows(rows(40, 2000)) == [0, 1, 2, 20], "of large rows fewer"
