"""The rows that a model gets for the tokens of its tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.models import fit_embeddings, grow_embeddings
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import PromptTuning, TrainedRows, train_embeddings, train_tokens

SIZES = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 16, "vocab_size": 32}
LORA = {"lora_attn_modules": ["q_proj"]}


def model(build, tied=False, classes=None, **arguments):
    with torch.device("meta"):
        return build(DecoderConfig(**SIZES, tie_word_embeddings=tied, num_classes=classes), **arguments)


def tokenizer(vocab_size, *added):
    return SimpleNamespace(vocab_size=vocab_size, added_ids=list(added))


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_get_rows_and_are_trained_beside_adapters(tied, log_lines):
    built = model(lora_decoder, tied, **LORA)
    fit_embeddings(built, tokenizer(35, 33, 34))
    assert built.config.vocab_size == 35 and built.added_rows == 3
    assert log_lines == ["the embedding grows from 32 to 35 rows, the new ones the mean of the others"]
    assert built.tok_embeddings.indices == (32, 33, 34)  # the one that the tokenizer had already, too
    named = {name for name, param in built.named_parameters() if param.requires_grad and "lora" not in name}
    assert named == {"tok_embeddings.rows"} | (set() if tied else {"output.rows"})


def test_tokens_with_rows_of_their_own_are_trained_without_growth(log_lines):
    built = model(lora_decoder, **LORA)
    fit_embeddings(built, tokenizer(20, 3, 19))
    assert (built.config.vocab_size, built.added_rows, log_lines) == (32, 0, [])
    assert built.tok_embeddings.indices == built.output.indices == (3, 19)


def test_the_classes_of_a_classifier_are_no_tokens():
    built = model(lora_decoder, **LORA, classes=3)
    fit_embeddings(built, tokenizer(34, 32, 33))
    assert built.tok_embeddings.indices == (32, 33) and built.output.weight.shape == (3, 16)


def test_a_model_that_is_trained_whole_grows_alone():
    built = model(decoder)
    fit_embeddings(built, tokenizer(34, 32, 33))
    assert type(built.output) is nn.Linear and built.output.weight.shape == (34, 16)
    assert all(param.requires_grad for param in built.parameters())
    assert not any(isinstance(module, TrainedRows) for module in built.modules())


def test_a_tokenizer_that_is_larger_without_a_reason_changes_nothing():
    built = model(lora_decoder, **LORA)
    fit_embeddings(built, tokenizer(40))
    assert built.config.vocab_size == 32  # `check_vocabulary` refuses it
    asked = model(lora_decoder, **LORA, train_embeddings="new")
    fit_embeddings(asked, tokenizer(40))
    assert asked.config.vocab_size == 40
    whole = model(lora_decoder, **LORA, train_embeddings="all")
    fit_embeddings(whole, tokenizer(40))
    assert whole.output.weight.requires_grad and whole.tok_embeddings.weight.requires_grad
    assert not any(isinstance(module, TrainedRows) for module in whole.modules())


@pytest.mark.parametrize("kind", ["rows", "whole"])
def test_what_a_saved_adapter_trains_stays_as_it_is(kind, log_lines):
    built = model(lora_decoder, **LORA)
    grow_embeddings(built, 34)
    if kind == "rows":
        train_tokens(built, [32, 33], [32, 33])
    else:
        train_embeddings(built)
    before = {name for name, param in built.named_parameters() if param.requires_grad}
    del log_lines[:]
    fit_embeddings(built, tokenizer(34, 32, 33))
    assert {name for name, param in built.named_parameters() if param.requires_grad} == before
    assert log_lines == []
    fit_embeddings(built, tokenizer(32))
    assert log_lines == [
        "the adapter has rows of 2 tokens that the tokenizer lacks and no text has; name what it was trained with in "
        "tokenizer.add_tokens"
    ]


def test_says_where_there_is_nothing_to_train_or_no_place_for_it():
    with pytest.raises(ConfigError, match="model.train_embeddings: new, but the tokenizer has no new tokens; name"):
        fit_embeddings(model(lora_decoder, train_embeddings="new"), tokenizer(32))
    with pytest.raises(ConfigError, match="tokenizer.add_tokens: no row can be added to an output projection that car"):
        fit_embeddings(model(lora_decoder, **LORA, apply_lora_to_output=True), tokenizer(33, 32))
    with pytest.raises(ConfigError, match="tokenizer.add_tokens: no file has rows of tokens beside virtual tokens"):
        fit_embeddings(model(lora_decoder, adapter=PromptTuning(3)), tokenizer(33, 32))
    with pytest.raises(ValueError, match="train_embeddings is 'some'; allowed are new, all, or null"):
        model(lora_decoder, **LORA, train_embeddings="some")
    with pytest.raises(ValueError, match="no projection carries an adapter"):
        model(lora_decoder, train_embeddings="all")
