import pytest
import torch

from torchtune_lite.data import padded_collate_sft, padding_free_collate_sft
from torchtune_lite.errors import DataError

SAMPLES = [{"tokens": [5], "labels": [-100]}, {"tokens": [6, 7, 8], "labels": [7, 8, -100]}]


def test_pads_on_the_right_to_the_longest():
    batch = padded_collate_sft(SAMPLES, padding_idx=99)
    assert batch["tokens"].tolist() == [[5, 99, 99], [6, 7, 8]]
    assert batch["labels"].tolist() == [[-100, -100, -100], [7, 8, -100]]
    assert batch["lengths"].tolist() == [1, 3]
    assert batch["tokens"].dtype == batch["labels"].dtype == batch["lengths"].dtype == torch.int64


def test_without_padding_samples_lie_in_one_row():
    batch = padding_free_collate_sft(SAMPLES, padding_idx=99)
    assert batch["tokens"].tolist() == [[5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[-100, 7, 8, -100]]
    assert batch["seq_lens"] == [1, 3]
    assert batch["tokens"].dtype == batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("collate", [padded_collate_sft, padding_free_collate_sft])
@pytest.mark.parametrize(
    "sample, said",
    [
        ({"tokens": [5, 6], "labels": [6]}, "a sample has 1 label for 2 tokens; give each token one, -100 for none"),
        ({"tokens": [5, 6], "labels": [6, 7, -100]}, "a sample has 3 labels for 2 tokens"),
        (
            {"chosen_input_ids": [5], "chosen_labels": [6]},
            "a sample has chosen_input_ids, chosen_labels; this collate j",
        ),
    ],
)
def test_a_sample_of_another_kind_is_not_joined(collate, sample, said):
    with pytest.raises(DataError, match=f"^{said}"):
        collate([*SAMPLES, sample])
