import logging

import pytest
import tokenizers

from tests.data.chats import TEMPLATES, plain, write_folder
from torchtune_lite.data import Message, SentencePieceTokenizer, check_vocabulary, limit_length, load_tokenizer
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


def folder_with_image_token(tmp_path, template):
    """A tokenizer whose last token, `<image>`, is added beyond the embeddings of the model."""
    folder = write_folder(tmp_path, "bytelevel", chat_template=template)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    embedded = backend.get_vocab_size()
    backend.add_special_tokens(["<image>"])
    backend.save(str(folder / "tokenizer.json"))
    return folder, embedded


def test_an_added_token_that_is_not_embedded_becomes_text(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("torchtune_lite.data.fitting.log.propagate", True)
    folder, embedded = folder_with_image_token(tmp_path, plain(TEMPLATES["chatml"]))
    tokenizer = load_tokenizer(folder, prompt_template="chat_template")
    messages = [Message("user", "an <image> of"), Message("assistant", "a cat")]
    assert max(tokenizer.tokenize_messages(messages)[0]) == embedded
    with caplog.at_level("INFO"):
        check_vocabulary(tokenizer, embedded)
    assert "the model does not embed <image>, which are read as text" in caplog.text
    tokens, _ = tokenizer.tokenize_messages(messages)
    assert max(tokens) < embedded == tokenizer.vocab_size
    assert "<image>" in tokenizer.decode(tokens)


@pytest.mark.parametrize("fewer", [1, 2])
def test_tokens_that_the_template_or_any_text_may_give_must_be_embedded(fewer, tmp_path):
    template = "<image>" * (fewer == 1) + plain(TEMPLATES["chatml"])
    folder, embedded = folder_with_image_token(tmp_path, template)
    with pytest.raises(DataError, match=f"has {embedded + 1} tokens but the model embeds {embedded + 1 - fewer}"):
        check_vocabulary(load_tokenizer(folder, prompt_template="chat_template"), embedded + 1 - fewer)
