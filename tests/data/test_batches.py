import random
import re
from pathlib import Path

import pytest
import torch

from torchtune_lite.data import Batches, num_label_tokens, num_real_tokens, padded_collate_sft, windows
from torchtune_lite.errors import DataError


class Numbers:
    """Sample i has i + 1 tokens, all of them i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {"tokens": [i] * (i + 1), "labels": [i] * i + [-100]}

    def where(self, i):
        return f"x.jsonl:{i + 1}"


def batches(length=7, batch_size=3, *, seed=0, shuffle=False, **rest):
    return Batches(Numbers(length), batch_size, seed=seed, shuffle=shuffle, pad_id=99, **rest)


def order(epoch):
    """The samples in the order they come: the first token of a sample is its number."""
    return [int(token) for batch in epoch for token in batch["tokens"][:, 0]]


def test_pads_on_the_right_to_the_longest():
    batch = padded_collate_sft([Numbers(3)[0], Numbers(3)[2]], padding_idx=99)
    assert batch["tokens"].tolist() == [[0, 99, 99], [2, 2, 2]]
    assert batch["labels"].tolist() == [[-100, -100, -100], [2, 2, -100]]
    assert batch["tokens"].dtype == batch["labels"].dtype == torch.int64


def test_an_epoch_has_every_sample_once_the_last_batch_being_smaller():
    data = batches()
    assert len(data) == 3
    assert [batch["tokens"].shape for batch in data.epoch(0)] == [(3, 3), (3, 6), (1, 7)]
    assert order(data.epoch(0)) == list(range(7))
    assert len(batches(6)) == 2 and len(batches(1)) == 1


def test_the_order_is_that_of_seed_and_epoch():
    data = batches(50, shuffle=True)
    first = order(data.epoch(0))
    assert sorted(first) == list(range(50)) and first != list(range(50))
    assert first == order(data.epoch(0)) == order(batches(50, shuffle=True).epoch(0))
    assert first == order(batches(50, batch_size=7, shuffle=True).epoch(0))
    orders = [order(batches(50, shuffle=True, seed=s).epoch(e)) for s in (0, 1, 2**40) for e in (0, 1)]
    assert len({tuple(each) for each in orders}) == 6


def test_starts_anywhere_in_an_epoch():
    data = batches(50, shuffle=True)
    assert order(data.epoch(3, start=5)) == order(data.epoch(3))[15:]
    assert list(data.epoch(3, start=len(data))) == []


def test_leaves_the_global_random_state_alone():
    random.seed(0)
    torch.manual_seed(0)
    before = random.getstate(), torch.get_rng_state()
    list(batches(50, shuffle=True).epoch(0))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_an_id_beyond_the_embedding_names_its_row():
    list(batches(vocab_size=100).epoch(0))  # the padding, 99, counts too
    with pytest.raises(DataError, match="^x.jsonl:6: token id 5 is beyond the model's 5 embeddings"):
        list(Batches(Numbers(6), 4, seed=0, shuffle=False, pad_id=0, vocab_size=5).epoch(0))


def test_says_where_the_rows_of_some_micro_batches_stand():
    data = batches(50, shuffle=True)
    rows = order(data.epoch(2))
    assert data.where(2, 3, 2) == ", ".join(f"x.jsonl:{row + 1}" for row in rows[9:15])
    assert data.where(2, 0, 50, shown=2) == f"x.jsonl:{rows[0] + 1}, x.jsonl:{rows[1] + 1} and 48 more"
    assert Batches([{}], 1, seed=0, shuffle=False, pad_id=0).where(0, 0, 1) == "sample 0"


def test_the_fingerprint_is_that_of_the_samples_not_of_their_order():
    assert batches(50).fingerprint() == batches(50, 7, seed=3, shuffle=True).fingerprint()
    assert batches(50).fingerprint().startswith("50 samples with hash ")
    data = batches(600)
    assert data.fingerprint() == batches(600).fingerprint() != batches(601).fingerprint()
    data.dataset = [data.dataset[i] for i in range(599)] + [{"tokens": [1], "labels": [1]}]
    assert data.fingerprint() == batches(600).fingerprint(), "of 600 samples, 256 are looked at"
    assert data.fingerprint(600) != batches(600).fingerprint(600)


def test_a_batch_without_any_label_is_a_batch():
    data = [{"tokens": [1, 2], "labels": [-100, -100]}]
    (batch,) = Batches(data, 2, seed=0, shuffle=True, pad_id=0, vocab_size=3).epoch(0)
    assert num_label_tokens([batch]) == 0
    with pytest.raises(DataError, match="^sample 0: token id 2"):  # a data set that knows no places
        list(Batches(data, 2, seed=0, shuffle=True, pad_id=0, vocab_size=2).epoch(0))


def test_another_collate_gets_the_samples_and_the_padding():
    data = batches(2, collate=lambda samples, padding_idx: {"tokens": torch.tensor([[len(samples), padding_idx]])})
    assert [batch["tokens"].tolist() for batch in data.epoch(0)] == [[[2, 99]]]


def test_no_other_process_makes_batches():
    """Which a signal to the whole group would end before the run has saved."""
    root = Path(__file__).resolve().parent.parent.parent
    sources = [*(root / "torchtune_lite").rglob("*.py"), *(root / "recipes").glob("*.py")]
    assert len(sources) > 50
    for path in sources:
        assert not re.search(r"\bDataLoader\b|\bmultiprocessing\b|num_workers=", path.read_text()), path


def test_windows_yield_what_is_left():
    assert list(windows(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(windows(range(4), 2)) == [[0, 1], [2, 3]]
    assert list(windows([], 2)) == []


def test_counts_label_tokens():
    assert num_label_tokens(batches(4).epoch(0)) == 0 + 1 + 2 + 3


def test_counts_tokens_that_are_no_padding():
    assert num_real_tokens(batches(4).epoch(0), 99) == 1 + 2 + 3 + 4
