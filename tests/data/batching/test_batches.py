import random

import pytest
import torch

from torchtune_lite.data import Batches, num_label_tokens, num_real_tokens, sample_lens, windows
from torchtune_lite.data.batching import plan
from torchtune_lite.errors import ConfigError, DataError


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


def batches(length=7, batch_size=3, *, seed=0, shuffle=False, collate="padded", **rest):
    return Batches(Numbers(length), batch_size, seed=seed, shuffle=shuffle, pad_id=99, collate=collate, **rest)


def order(epoch):
    """The order of the samples: the first token of a sample is its number."""
    return [int(token) for batch in epoch for token in batch["tokens"][:, 0]]


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


def test_looks_for_rows_at_their_place_in_the_epoch(monkeypatch):
    looked_at, at = [], plan.Chunks.__getitem__
    monkeypatch.setattr(plan.Chunks, "__getitem__", lambda self, number: looked_at.append(number) or at(self, number))
    batches(50).where(0, 14, 9)
    assert looked_at == [14, 15, 16]


def test_the_fingerprint_is_that_of_the_samples_not_of_their_order():
    assert batches(50).fingerprint() == batches(50, 7, seed=3, shuffle=True, num_workers=2).fingerprint()
    assert batches(600).fingerprint() == batches(600).fingerprint() != batches(601).fingerprint()
    packs = Batches(Packed(50), 3, seed=0, shuffle=False, pad_id=0).fingerprint()["samples"]
    assert packs == batches(50).fingerprint()["samples"].replace("samples", "samples in packs of 50")


def test_a_batch_without_any_label_is_a_batch():
    data = [{"tokens": [1, 2], "labels": [-100, -100]}]
    (batch,) = Batches(data, 2, seed=0, shuffle=True, pad_id=0, vocab_size=3).epoch(0)
    assert num_label_tokens([batch]) == 0
    with pytest.raises(DataError, match="^sample 0: token id 2"):  # a data set that knows no places
        list(Batches(data, 2, seed=0, shuffle=True, pad_id=0, vocab_size=2).epoch(0))


def test_another_collate_gets_the_samples_and_the_padding():
    data = batches(2, collate=lambda samples, padding_idx: {"tokens": torch.tensor([[len(samples), padding_idx]])})
    assert [batch["tokens"].tolist() for batch in data.epoch(0)] == [[[2, 99]]]


def test_windows_yield_what_is_left():
    assert list(windows(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(windows(range(4), 2)) == [[0, 1], [2, 3]]
    assert list(windows([], 2)) == []


def test_counts_label_tokens():
    assert num_label_tokens(batches(4).epoch(0)) == 0 + 1 + 2 + 3


def test_counts_tokens_that_are_no_padding():
    assert num_real_tokens(batches(4).epoch(0), 99) == 1 + 2 + 3 + 4


def test_counts_no_token_as_padding_where_there_is_none():
    free = batches(4, collate="padding_free")
    free.pad_id = 2  # the token of a sample
    assert num_real_tokens(free.epoch(0), 2) == 1 + 2 + 3 + 4


@pytest.mark.parametrize("collate", ["padding_free", "padded"])
def test_counts_an_eos_that_also_pads(collate):
    samples = [{"tokens": [1, 2], "labels": [2, -100]}, {"tokens": [1, 3, 4, 2], "labels": [3, 4, 2, -100]}]
    data = Batches(samples, 2, seed=0, shuffle=False, pad_id=2, collate=collate)
    (batch,) = data.epoch(0)
    assert sample_lens(batch, 2) == [2, 4] and num_real_tokens([batch], 2) == 6
    data.collate = lambda samples, padding_idx: {"tokens": torch.tensor([[1, padding_idx, padding_idx]])}
    assert sample_lens(next(data.epoch(0)), 2) == [1], "a collate that says no lengths"


def test_joined_batches_have_the_samples_of_padded_ones():
    joined = list(batches(50, shuffle=True, collate="padding_free").epoch(1))
    padded = list(batches(50, shuffle=True).epoch(1))
    assert [batch["tokens"][0].tolist() for batch in joined] == [
        [token for row in batch["tokens"].tolist() for token in row if token != 99] for batch in padded
    ]


def test_workers_make_the_same_batches():
    ahead, here = (list(batches(50, shuffle=True, num_workers=n).epoch(2, start=4)) for n in (2, 0))
    assert len(ahead) == len(here) == 13
    assert all(torch.equal(a[name], b[name]) for a, b in zip(ahead, here, strict=True) for name in a)


def test_samples_of_about_the_same_length_come_together():
    grouped = batches(400, 4, shuffle=True, group_by_length=True)
    assert sorted(order(grouped.epoch(0))) == list(range(400))
    assert order(grouped.epoch(0)) != order(grouped.epoch(1))
    shares = [
        sum(int((batch["tokens"] == 99).sum()) for batch in data.epoch(0))
        for data in (grouped, batches(400, 4, shuffle=True))
    ]
    assert shares[0] < shares[1] / 10


class Packed(Numbers):
    pack_len = 50
    lengths = range(1, 8)


def test_packs_take_as_many_samples_as_fit():
    data = Batches(Packed(7), 2, seed=0, shuffle=True, pad_id=99)
    data.pack_len = 5
    epochs = [[batch["seq_lens"] for batch in data.epoch(e)] for e in range(3)]
    assert [sorted(sum(lengths, [])) for lengths in epochs] == [list(range(1, 8))] * 3
    assert {sum(lengths) for epoch in epochs for lengths in epoch} == {10, 8}  # 7 + 3, 6 + 4, 5 + 2 + 1
    assert len(data) == 3 == len(epochs[0]) and epochs[0] != epochs[1]
    assert data.where(0, 0, 1).count("x.jsonl:") == len(epochs[0][0])


def test_nothing_is_padded_in_packs():
    with pytest.raises(ConfigError, match="^dataset.packed=True leaves nothing to pad; set collate=padding_free"):
        Batches(Packed(7), 2, seed=0, shuffle=True, pad_id=99, collate="padded")


@pytest.mark.parametrize("collate", ["padded", "padding_free"])
def test_samples_without_tokens_are_left_out(collate):
    empty = {"tokens": [], "labels": []}
    data = [empty, {"tokens": [1, 2], "labels": [2, -100]}, empty, empty]
    first, second = Batches(data, 2, seed=0, shuffle=False, pad_id=7, collate=collate).epoch(0)
    assert first["tokens"].tolist() == [[1, 2]] and first["labels"].tolist() == [[2, -100]]
    assert second["labels"].tolist() == [[-100]]


def test_tells_the_share_of_time_that_went_on_waiting(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 8.0, 10.0, 10.0])  # made at 0; a batch asked for at 1, there at 4; told at 8
    monkeypatch.setattr("torchtune_lite.data.batching.batches.time.perf_counter", lambda: next(now))
    data = batches(4)
    next(data.epoch(0))
    assert data.take_wait_share() == 3 / 8
    assert data.take_wait_share() == 0.0


class Drawn(Packed):
    """A mixture of which each epoch takes another part."""

    def order(self, seed, epoch, shuffle):
        return [i for i in range(7) if i != epoch % 7]


def test_each_epoch_of_a_drawn_data_set_has_as_many_packs():
    data = Batches(Drawn(7), 1, seed=0, shuffle=True, pad_id=99)
    data.pack_len = 7
    epochs = [[batch["seq_lens"] for batch in data.epoch(epoch)] for epoch in range(7)]
    assert {len(epoch) for epoch in epochs} == {len(data)} == {4}
    assert len({str(sorted(sum(epoch, []))) for epoch in epochs}) == 7


def test_the_largest_batch_has_the_longest_samples_and_labels_everywhere():
    padded, joined = batches(7, 3).largest(), batches(7, 3, collate="padding_free").largest()
    assert padded["tokens"].shape == (3, 7) and joined["seq_lens"] == [5, 6, 7]
    assert (joined["labels"] != -100).all()
    data = batches(2, 3, collate="padding_free")
    assert data.largest()["seq_lens"] == [1, 2]
    data.pack_len = 8
    assert data.largest()["seq_lens"] == [8, 8, 8]
