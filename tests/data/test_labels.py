import pytest

from torchtune_lite.data.labels import has_label, shifted_labels
from torchtune_lite.errors import DataError


def test_labels_are_the_next_token_where_that_one_is_not_masked():
    assert shifted_labels([5, 6, 7, 8], [True, False, True, False]) == [6, -100, 8, -100]
    assert shifted_labels([5], [False]) == [-100]
    with pytest.raises(DataError, match="the tokenizer gives 2 marks in mask for 1 token; give each token one"):
        shifted_labels([5], [False, True])


def test_any_label_counts():
    assert has_label([-100, 0]) and not has_label([-100, -100]) and not has_label([])
