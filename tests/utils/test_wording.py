"""Numbers with their nouns."""

from torchtune_lite.utils import counted


def test_one_is_one_and_all_others_are_several():
    assert [counted(number, "row") for number in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]
    assert [counted(number, "weight is", "weights are") for number in (1, 2)] == ["1 weight is", "2 weights are"]
