"""The micro-batches of a run, and the steps they make."""

from types import SimpleNamespace

import pytest

from torchtune_lite.data import StreamDataset
from torchtune_lite.errors import ConfigError
from torchtune_lite.training.run import data as run_data
from torchtune_lite.training.run.data import RunData

SAMPLES = [{"tokens": [n] * n, "labels": [n] * (n - 1) + [-100]} for n in range(2, 13)]  # 11


class Dataset(tuple):
    """Samples that are not a list of data sets."""


KEYS = {
    "dataset": Dataset(SAMPLES),
    "dataset_weights": None,
    "dataset_val": {"few": Dataset(SAMPLES[:3])},
    "dataset_eval": None,
    "batch_size": 2,
    "batch_size_val": None,
    "shuffle": False,
    "collate": "padded",
    "group_by_length": False,
    "num_workers": 0,
    "gradient_accumulation_steps": 2,
    "max_steps_per_epoch": None,
}


@pytest.fixture
def make(monkeypatch):
    """Make the data of a run; the settings hold finished data sets."""
    monkeypatch.setattr(run_data.config, "instantiate", lambda value, tokenizer: value)
    tokenizer = SimpleNamespace(pad_id=0)
    return lambda **changes: RunData(SimpleNamespace(**{**KEYS, **changes}), tokenizer, vocab_size=20, seed=1)


def test_windows_have_the_micro_batches_of_a_step_and_the_last_what_is_left(make):
    data = make()
    windows = list(data.windows(0))
    assert data.steps_per_epoch == len(windows) == 3
    assert [len(window) for window in windows] == [2, 2, 2] and len(windows[-1][-1]["tokens"]) == 1
    rest = list(data.windows(1, done=1))
    assert [[batch["tokens"].tolist() for batch in window] for window in rest] == [
        [batch["tokens"].tolist() for batch in window] for window in windows[1:]
    ]
    assert len(list(make(max_steps_per_epoch=2).windows(0))) == 2
    assert len(list(make(max_steps_per_epoch=2).windows(0, done=1))) == 1


def test_the_rows_of_a_step_are_named_in_any_epoch(make):
    data = make()
    assert data.where(0, 2) == "sample 0, sample 1, sample 2, sample 3" == data.where(3, 2)
    assert data.where(2, 2) == "sample 8, sample 9, sample 10"


def test_validation_has_its_sets_by_name_in_their_order_and_a_batch_size(make):
    assert list(make().val) == ["few"] and len(make().val["few"]) == 2
    assert len(make(batch_size_val=3, shuffle=True).val["few"]) == 1
    assert not make(shuffle=True).val["few"].shuffle
    assert make(dataset_val=None).val == {}


def test_an_epoch_of_a_stream_needs_an_end(make):
    with pytest.raises(ConfigError, match="set max_steps_per_epoch"):
        make(dataset=StreamDataset(None, None))


def test_what_was_cut_or_left_out_is_reported_of_each_set(make):
    told = []
    data = make(dataset_val={"a": Dataset(SAMPLES[:3]), "b": Dataset(SAMPLES[:4])})
    for name, batches in {"train": data.train, **data.val}.items():
        batches.report_read = lambda name=name: told.append(name)
    data.report_read()
    assert told == ["train", "a", "b"] and data.train.vocab_size == 20
