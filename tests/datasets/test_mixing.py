from array import array

import pytest

from torchtune_lite import config
from torchtune_lite.data import PackedDataset
from torchtune_lite.datasets import concatenated, preference_dataset, text_completion_dataset, validation_sets
from torchtune_lite.datasets.mixing import ConcatDataset, MixedDataset
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


SAMPLES = [{"tokens": [1, 2], "labels": [2, -100]}]


def test_validation_sets_are_kept_apart_by_name(tokenizer, jsonl):
    a, b = (text_completion_dataset(tokenizer, jsonl([{"text": "x"}], f"{name}.jsonl")) for name in "ab")
    assert validation_sets(None) == {}
    assert validation_sets(a) == validation_sets([a]) == {"": a}
    assert validation_sets([a, b]) == {"a": a, "b": b}
    assert validation_sets([a, b, a]) == {"a_0": a, "b": b, "a_2": a}
    assert validation_sets({"first": a, "second": b}) == {"first": a, "second": b}
    assert validation_sets({"only": a}) == {"only": a}


@pytest.mark.parametrize("built", [[], [[]], {"mine": []}, [[], SAMPLES]])
def test_a_validation_set_without_samples_is_an_error(built):
    with pytest.raises((ConfigError, DataError), match="empty|has 0 samples"):
        validation_sets(built)


@pytest.mark.parametrize("several", [False, True])
def test_a_stream_has_no_end_to_validate_on(several, tokenizer, jsonl):
    stream = text_completion_dataset(tokenizer, jsonl([{"text": "a"}]), streaming=True)
    with pytest.raises(ConfigError, match="^dataset_val: a stream has no end"):
        validation_sets([stream, SAMPLES] if several else stream)


def test_tells_which_data_set_a_sample_is_from(tokenizer, jsonl):
    paths = [jsonl([{"text": text} for text in texts], f"{texts}.jsonl") for texts in ("ab", "c")]
    dataset = concatenated([text_completion_dataset(tokenizer, path) for path in [*paths, paths[0]]])
    assert [dataset.source(i) for i in range(5)] == [0, 0, 1, 2, 2]
    assert dataset.names == ["ab_0", "c", "ab_2"]


# --- mixtures ---


class Numbers(list):
    where = "x.jsonl:{}".format


def shares(mixture, epoch, seed=0, shuffle=True):
    """The samples of an epoch, by data set."""
    order = mixture.order(seed, epoch, shuffle)
    return [[mixture[i] for i in order if mixture.source(i) == n] for n in range(len(mixture.datasets))]


def mixture(*weights):
    return MixedDataset([Numbers(range(100, 130)), Numbers(range(200, 210))], weights)


def test_an_epoch_has_shares_as_the_weights():
    for weights, counts in (((3, 1), [30, 10]), ((1, 1), [20, 20]), ((0.1, 0.9), [4, 36])):
        assert [len(each) for each in shares(mixture(*weights), 0)] == counts


def test_no_sample_comes_again_before_all_of_its_data_set_have_come():
    few, many = zip(*(shares(mixture(1, 3), epoch) for epoch in range(6)), strict=True)  # 10 and 30 an epoch
    few, many = sum(few, []), sum(many, [])
    assert sorted(few[:30]) == sorted(few[30:]) == list(range(100, 130)) and few[:30] != few[30:]
    assert all(sorted(many[i : i + 10]) == list(range(200, 210)) for i in range(0, 180, 10))
    assert few[:30] != list(range(100, 130))


def test_the_shares_are_those_of_seed_and_epoch():
    assert shares(mixture(1, 1), 3) == shares(mixture(1, 1), 3) != shares(mixture(1, 1), 4)
    assert shares(mixture(1, 1), 3) != shares(mixture(1, 1), 3, seed=1)
    assert shares(mixture(1, 1), 1, shuffle=False)[0] == [*range(120, 130), *range(100, 110)]


def test_says_what_an_epoch_is_made_of(log_lines):
    mixture(1, 1)
    assert log_lines == ["an epoch's 40 samples: Numbers_0 20 (50.0%, 0.67 × each), Numbers_1 20 (50.0%, 2 × each)"]


@pytest.mark.parametrize(
    ("weights", "match"),
    [([1], "dataset_weights has 1 number for 2 data sets"), ([1, 0], "dataset_weights must be more than 0, got 0")],
)
def test_weights_must_fit_the_data_sets(weights, match):
    with pytest.raises(ConfigError, match=match):
        mixture(*weights)
    with pytest.raises(ConfigError, match="dataset_weights needs a list of several data sets"):
        concatenated(range(3), weights)


def test_all_are_packed_or_none():
    packed = [PackedDataset([{"tokens": [n], "labels": [-100]}] * n, 8) for n in (2, 3)]
    joined = concatenated(packed)
    assert joined.pack_len == 8 and list(joined.lengths) == [1] * 5
    with pytest.raises(ConfigError, match="some data sets of the list are packed and others are not"):
        ConcatDataset([packed[0], Numbers([1])])


def test_a_stream_stands_alone(tokenizer, jsonl):
    stream = text_completion_dataset(tokenizer, jsonl([{"text": "a"}]), streaming=True, packed=False)
    assert concatenated(stream) is concatenated([stream]) is stream and len(stream.first()) == 1
    with pytest.raises(ConfigError, match="a stream cannot be one of a list"):
        concatenated([stream, range(3)])


def test_an_empty_list_is_an_error():
    with pytest.raises(ConfigError, match="empty list"):
        concatenated([])


def test_no_samples_at_all_is_an_error():
    with pytest.raises(DataError, match=r"dataset \(range\) has 0 samples: no optimizer step would run"):
        concatenated(range(0))
    with pytest.raises(DataError, match=r"dataset \(range\) has 0 samples: leave it out of the list"):
        concatenated([range(0), packed()])


def packed():
    return PackedDataset([{"tokens": [1], "labels": [-100]}], 8)


def test_pairs_are_no_samples(tokenizer, jsonl):
    path = jsonl([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    pairs, samples = (
        preference_dataset(tokenizer, path),
        text_completion_dataset(tokenizer, jsonl([{"text": "a"}], "x.jsonl")),
    )
    for built in (pairs, [samples, pairs]):
        with pytest.raises(DataError, match="dataset makes pairs of answers, which no recipe here trains on; train on"):
            concatenated(built)


def test_those_of_the_users_own_are_checked(tokenizer, jsonl):
    own = ({"tokens": array("i", [1, 2]), "labels": [2, -100]},)
    text = text_completion_dataset(tokenizer, jsonl([{"text": "a"}]))
    assert concatenated(own)[0] == concatenated([text, own])[1] == {"tokens": [1, 2], "labels": [2, -100]}
    assert concatenated([own, text, own]).names == ["tuple_0", "rows", "tuple_2"]
    for built in (({"tokens": [1]},), [text, ({"tokens": [1]},)]):
        with pytest.raises(DataError, match="sample 0 must be a mapping with 'tokens' and 'labels'"):
            concatenated(built)
