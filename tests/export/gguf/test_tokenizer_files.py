import json

import pytest
import tokenizers

from tests.export.gguf.test_vocabulary import byte_level  # noqa: F401 (a fixture)
from tests.export.models import BASE
from torchtune_lite.data import Message, load_tokenizer
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.tokenizer_files import read_tokenizer
from torchtune_lite.export.gguf.vocabulary import write_vocabulary

TEXTS = ["the street 1234", " and  the", "é市𝄞\n\n", "<tool> in <|im_end|>", "", "houses"]


def again(tokenizer, folder, size):
    files, ids = read_tokenizer(write_vocabulary(tokenizer, size))
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return load_tokenizer(folder, prompt_template="chat_template" if tokenizer.prompt_template else None), ids


def test_byte_level_bpe_gives_the_same_tokens(byte_level, tmp_path):  # noqa: F811
    tokenizer = load_tokenizer(byte_level, prompt_template="chat_template")
    back, ids = again(tokenizer, tmp_path / "back", tokenizer.vocab_size + 3)
    assert back.vocab_size == tokenizer.vocab_size  # not those that fill the embedding up
    assert [back.encode(text) for text in TEXTS] == [tokenizer.encode(text)[:-1] + [2] for text in TEXTS]
    chat = [Message("user", " the  street?"), Message("assistant", "in the house"), Message("user", "12")]
    assert back.tokenize_messages(chat) == tokenizer.tokenize_messages(chat)
    assert ids == {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}


def test_sentencepiece_gives_the_same_tokens(tmp_path):
    tokenizer = load_tokenizer(BASE)
    back, _ = again(tokenizer, tmp_path / "back", 1152)
    texts = [text for text in TEXTS if not text.startswith(" ")]  # whose first space SentencePiece doubles
    assert [back.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


def test_transformers_reads_it(byte_level, tmp_path):  # noqa: F811
    import transformers

    tokenizer = load_tokenizer(byte_level, prompt_template="chat_template")
    again(tokenizer, tmp_path / "back", tokenizer.vocab_size)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [theirs.encode(text) for text in TEXTS] == [tokenizer.encode(text, False, False) for text in TEXTS]
    assert theirs.eos_token == "<|im_end|>" and isinstance(theirs._tokenizer, tokenizers.Tokenizer)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokenizer.ggml.model": "t5"}, "has a tokenizer of the kind 't5'; known are gpt2"),
        ({"tokenizer.ggml.tokens": []}, "has a tokenizer of the kind 'llama'"),
        ({"tokenizer.ggml.eos_token_id": 99_999}, "has the special tokens {'eos': 99999}, of which it has no text"),
    ],
)
def test_what_cannot_be_read_is_one_line(change, problem):
    with pytest.raises(CheckpointError, match=problem):
        read_tokenizer(write_vocabulary(load_tokenizer(BASE), 1152) | change)
