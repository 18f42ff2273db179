import pickle
from array import array

import numpy as np
import pytest
import torch

from torchtune_lite.data import Batches
from torchtune_lite.datasets.own import OwnDataset
from torchtune_lite.errors import DataError

TOKENS, LABELS = [5, 6, 7], [6, 7, -100]


class Mine(torch.utils.data.Dataset):
    """A data set as a user writes it."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def sample(tokens=TOKENS, labels=LABELS, **more):
    return {"tokens": tokens, "labels": labels, **more}


@pytest.mark.parametrize(
    "made",
    [
        list,
        tuple,
        lambda ids: array("i", ids),
        torch.tensor,
        lambda ids: torch.tensor(ids, dtype=torch.int32),
        np.array,
        lambda ids: np.array(ids, dtype=np.int16),
        lambda ids: [np.int64(i) for i in ids],
        lambda ids: [torch.tensor(i) for i in ids],
    ],
)
def test_lists_arrays_and_tensors_become_lists_of_ints(made):
    found = OwnDataset(Mine(sample(made(TOKENS), made(LABELS))))[0]
    assert found == sample() and {type(i) for ids in found.values() for i in ids} == {int}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ((TOKENS, LABELS), "must be a mapping with 'tokens' and 'labels', got tuple"),
        ({"input_ids": TOKENS, "labels": LABELS}, "'tokens' and 'labels', got the keys input_ids, labels"),
        ({"tokens": TOKENS, "mask": [True] * 3}, "'tokens' and 'labels', got the keys tokens, mask"),
        (sample(labels=LABELS[:2]), "has 2 labels for 3 tokens; give each token one, -100 for none"),
        (sample(labels=[*LABELS, 8]), "has 4 labels for 3 tokens"),
        (sample(torch.tensor([TOKENS])), "'tokens' must be one row of ints, got 2 dimensions of int64"),
        (
            sample(labels=torch.tensor(LABELS, dtype=torch.float32)),
            "'labels' must be one row of ints, got 1 .* float32",
        ),
        (sample([5.0, 6.0, 7.0]), "'tokens' must be one row of ints, got 1 dimensions of float64"),
        (sample(labels=[True, False, True]), "'labels' must be one row of ints, got 1 dimensions of bool"),
        (sample(["5", "6", "7"]), "'tokens' must be one row of ints"),
        (sample([[5], [6, 7]]), "'tokens' must be one row of ints, got list"),
        (sample(None), "'tokens' must be one row of ints, got NoneType"),
        (sample("abc"), "'tokens' must be one row of ints"),
        (sample(5), "'tokens' must be one row of ints, got 0 dimensions of int64"),
        (sample([5, -1, 7]), "'tokens' has -1, which is not the id of a token$"),
        (sample(labels=[6, -1, -100]), "'labels' has -1, .*; the label of no loss is -100"),
    ],
)
def test_what_is_not_the_contract_is_one_line_whichever_sample_it_is(wrong, said):
    with pytest.raises(DataError, match=rf"^dataset \(Mine\): sample 0.* {said}") as error:
        OwnDataset(Mine(wrong))
    assert "\n" not in str(error.value)
    dataset = OwnDataset(Mine(sample(), wrong))
    with pytest.raises(DataError, match=rf"^dataset \(Mine\): sample 1.* {said}"):
        dataset[1]


@pytest.mark.parametrize(
    "labels",
    [
        TOKENS,
        [-100, 6, 7],
        [-100, -100, 7],
        [5, -100, -100],
    ],
)
def test_labels_that_are_not_shifted_are_noticed(labels):
    with pytest.raises(DataError, match=r"is the token itself, and must be the next one; .* labels\[1:\] \+ \[-100\]"):
        OwnDataset(Mine(sample(labels=torch.tensor(labels))))


@pytest.mark.parametrize(
    "tokens, labels",
    [
        (TOKENS, [-100, 7, -100]),
        (TOKENS, [9, 9, 9]),
        (TOKENS, [-100] * 3),
        ([5, 5, 5], [5, 5, -100]),
        ([5, 5, 6], [5, 6, -100]),
        ([], []),
    ],
)
def test_labels_that_may_be_meant_are_taken(tokens, labels):
    assert OwnDataset(Mine(sample(tokens, labels)))[0] == sample(tokens, labels)


class Iterable(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield sample()


class Counted(Iterable):
    def __len__(self):
        return 1


class Unfinished(torch.utils.data.Dataset):
    def __len__(self):
        return 1


@pytest.mark.parametrize("dataset", [Iterable(), Counted(), Unfinished(), iter([sample()]), {"train": [sample()]}, 5])
def test_iterables_are_refused_with_what_to_do(dataset):
    with pytest.raises(DataError, match=r"needs __len__ and __getitem__ by number: an iterable .* and streaming=True"):
        OwnDataset(dataset)


def test_other_keys_are_named_once(log_lines):
    own = Mine(sample(weight=1), sample(weight=1))
    own.where = "row {}".format
    dataset = OwnDataset(own)
    assert dataset[0] == dataset[1] == sample() and dataset.where(1) == "row 1"
    assert log_lines == ["dataset (Mine): not read: weight of its samples"]
    assert len(pickle.loads(pickle.dumps(dataset))) == 2


def test_attributes_of_its_own_mean_nothing_here():
    """Our data sets have some of these names, with a meaning."""
    own = Mine(sample(), sample())
    own.source, own.order, own.lengths, own.pack_len, own.datasets = "rows.jsonl", "random", None, 7, ["a"]
    batches = Batches(OwnDataset(own), 2, seed=0, shuffle=True, pad_id=0, group_by_length=True)
    assert len(batches) == 1 and batches.fingerprint()["rows"][0][0] == "Mine"
    [batch] = batches.epoch(0)
    assert batch["tokens"].tolist() == [TOKENS * 2] and "sources" not in batch
