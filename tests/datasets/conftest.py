"""The tokenizer of characters, and samples written out."""

import pytest

from torchtune_lite.data import SentencePieceTokenizer


@pytest.fixture
def tokenizer(char_model):
    return SentencePieceTokenizer(char_model)


@pytest.fixture
def written(spell):
    """Write the samples of a data set out, tokens above labels."""
    return lambda dataset: [
        (spell(sample["tokens"]), spell(sample["labels"])) for sample in (dataset[i] for i in range(len(dataset)))
    ]
