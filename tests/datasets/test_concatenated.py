import pytest

from torchtune_lite import config
from torchtune_lite.datasets import concatenated, text_completion_dataset
from torchtune_lite.errors import ConfigError, DataError


def test_joins_data_sets_in_order(tokenizer, jsonl, written):
    paths = [jsonl([{"text": text} for text in texts], f"{texts}.jsonl") for texts in ("ab", "c", "def")]
    dataset = concatenated([text_completion_dataset(tokenizer, path) for path in paths])
    assert len(dataset) == 6
    assert [tokens for tokens, _ in written(dataset)] == [f"⟨▁{letter}⟩" for letter in "abcdef"]
    assert [dataset.where(i) for i in (1, 2, 5)] == [f"{paths[0]}:2", f"{paths[1]}:1", f"{paths[2]}:3"]
    for index in (6, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_single_data_set_stays_itself(tokenizer, jsonl):
    dataset = text_completion_dataset(tokenizer, jsonl([{"text": "a"}]))
    assert concatenated(dataset) is dataset
    assert concatenated([dataset]) is dataset


def test_a_list_in_a_config_is_one_data_set(tokenizer, jsonl):
    node = [
        {"_component_": "torchtune.datasets.text_completion_dataset", "source": jsonl([{"text": "a"}], name)}
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert len(concatenated(config.instantiate(node, tokenizer))) == 2


def test_an_empty_list_is_an_error():
    with pytest.raises(ConfigError, match="empty list"):
        concatenated([])


def test_no_samples_at_all_is_an_error():
    with pytest.raises(DataError, match=r"dataset \(range\) has 0 samples: no optimizer step would run"):
        concatenated(range(0))
