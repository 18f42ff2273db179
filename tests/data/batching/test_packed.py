import pickle
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_lite.data import ColumnText, PackedDataset, Rows, SFTDataset, sft
from torchtune_lite.errors import ConfigError


class Texts:
    """Sample i has `lengths[i]` tokens, from 100 i on, all in the loss; the data set notes which are made."""

    def __init__(self, *lengths):
        self.lengths_, self.made = lengths, []

    def __len__(self):
        return len(self.lengths_)

    def __getitem__(self, i):
        self.made.append(i)
        tokens = list(range(100 * i, 100 * i + self.lengths_[i]))
        return {"tokens": tokens, "labels": [*tokens[1:], -100] if tokens else []}

    def where(self, i):
        return f"x.txt:{i + 1}"


def test_a_long_sample_is_cut_in_several_whose_labels_go_on():
    data = PackedDataset(Texts(3, 10), 4)
    assert [data[i]["tokens"] for i in range(len(data))] == [
        [0, 1, 2],
        [100, 101, 102, 103],
        [104, 105, 106, 107],
        [108, 109],
    ]
    assert data[1]["labels"] == [101, 102, 103, 104] and data[3]["labels"] == [109, -100]
    assert list(data.lengths) == [3, 4, 4, 2]
    assert [data.where(i) for i in range(4)] == ["x.txt:1", "x.txt:2", "x.txt:2", "x.txt:2"]


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 12))
def test_each_token_with_a_label_is_there_once(lengths, limit):
    texts = Texts(*lengths)
    data = PackedDataset(texts, limit)
    pieces = [data[i] for i in range(len(data))]
    assert [len(piece["tokens"]) for piece in pieces] == list(data.lengths)
    assert all(0 < len(piece["tokens"]) <= limit for piece in pieces)
    pairs = [
        [pair for sample in samples for pair in zip(sample["tokens"], sample["labels"], strict=True) if pair[1] >= 0]
        for samples in (pieces, [texts[i] for i in range(len(texts))])
    ]
    assert pairs[0] == pairs[1]


def test_a_long_sample_is_made_once_however_many_it_becomes(log_lines):
    texts = Texts(4, 40, 3, 400)
    data = PackedDataset(texts, 4)
    assert texts.made == [0, 1, 2, 3] and len(data) == 1 + 10 + 1 + 100
    for _ in range(2):  # epochs
        assert data[5]["tokens"] == [116, 117, 118, 119] and data[50]["labels"] == [453, 454, 455, 456]
        assert data[0]["tokens"] == [0, 1, 2, 3]
    assert texts.made == [0, 1, 2, 3, 0, 0]
    assert log_lines[0].startswith("tokens of long samples: 0.0 MB of ")
    again = pickle.loads(pickle.dumps(data))  # as for a worker that is not forked
    assert [again[i] for i in range(len(data))] == [data[i] for i in range(len(data))]


def test_of_a_long_sample_in_memory_a_pack_costs_its_part(monkeypatch):
    class Counted(array):
        given = 0

        def __getitem__(self, part):
            return Counted("i", super().__getitem__(part))

        def tolist(self):
            Counted.given += len(self)
            return super().tolist()

    monkeypatch.setattr(sft, "array", Counted)
    rows = Rows("x", [{"text": "a" * 1000}, {"text": "b" * 5}], str)
    text = SFTDataset(
        rows, ColumnText("text"), lambda s: {"tokens": [7] * len(s["text"]), "mask": [0] * len(s["text"])}
    )
    data = PackedDataset(text, 10)
    Counted.given = 0
    assert sum(len(data[i]["tokens"]) for i in range(len(data))) == 1005
    assert Counted.given == 2 * 1005 and not data._long.size


def test_the_length_of_a_pack_must_be_known():
    with pytest.raises(ConfigError, match="^packed=True needs tokenizer.max_seq_len"):
        PackedDataset(Texts(3), None)
