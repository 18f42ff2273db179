import logging

import pytest

from torchtune_lite.data import Message, SentencePieceTokenizer, check_vocabulary, limit_length
from torchtune_lite.errors import ConfigError, DataError


def test_a_tokenizer_must_fit_the_embedding(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    check_vocabulary(tokenizer, tokenizer.vocab_size + 1)
    with pytest.raises(
        DataError, match=f"{tokenizer.vocab_size} tokens but the model embeds {tokenizer.vocab_size - 1}"
    ):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)


def test_samples_are_cut_to_the_models_positions_unless_told_to_be_shorter(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    limit_length(tokenizer, 5)
    tokens, _ = tokenizer.tokenize_messages([Message("user", "abc"), Message("assistant", "abc")])
    assert len(tokens) == 5
    tokenizer = SentencePieceTokenizer(char_model, max_seq_len=4)
    limit_length(tokenizer, 5)
    assert tokenizer.max_seq_len == 4
    with pytest.raises(ConfigError, match="max_seq_len=4 is more than the model's 3 positions"):
        limit_length(tokenizer, 3)


def test_warns_of_special_tokens_that_are_not_the_checkpoints(char_model, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torchtune_lite"), "propagate", True)
    tokenizer = SentencePieceTokenizer(char_model)
    (tmp_path / "config.json").write_text('{"bos_token_id": 128000, "eos_token_id": [128001, 2]}')
    check_vocabulary(tokenizer, 200, tmp_path)
    assert "has BOS 1, but the checkpoint's config.json has 128000" in caplog.text and "EOS" not in caplog.text
    caplog.clear()
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 1}')
    check_vocabulary(tokenizer, 200, tmp_path)
    check_vocabulary(tokenizer, 200, tmp_path / "none")
    assert not caplog.text


def test_padding_must_be_embedded(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    tokenizer.pad_id = 300
    with pytest.raises(DataError, match="pads with id 300, which the model does not embed"):
        check_vocabulary(tokenizer, 200)
