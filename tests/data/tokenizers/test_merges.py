import json

import pytest
from transformers import Qwen2Tokenizer

from tests.data.chats import trained
from torchtune_lite.data import load_tokenizer
from torchtune_lite.data.tokenizers.merges import from_vocabulary
from torchtune_lite.errors import DataError

TEXTS = ["the  quick\n\n fox 1234 don't", "<|im_start|>user\nwhat?<|im_end|>", "é 市𝄞 e\u0301", "\t tab  ", "#version"]


@pytest.fixture
def pair(tmp_path):
    """vocab.json and merges.txt of the byte-level tokenizer, its special tokens in tokenizer_config.json."""

    def write(**config):
        content = json.loads(trained("bytelevel")[1])
        model = content["model"]
        added = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in content["added_tokens"]}
        config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "</s>"} | config
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        lines = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
        (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize("path", ["", "vocab.json"])
def test_the_tokens_are_those_of_transformers(path, pair):
    folder = pair()
    ours, theirs = load_tokenizer(folder / path), Qwen2Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode_chat(text)[0] == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text, False, False)) == theirs.decode(ours.encode(text, False, False), True)
    assert ours.eos_id == theirs.eos_token_id


def test_a_class_whose_words_are_not_known_is_refused(pair):
    with pytest.raises(DataError, match=r"merges.txt and its vocabulary do not say .* \(GPT2Tokenizer\); fetch"):
        load_tokenizer(pair(tokenizer_class="GPT2Tokenizer") / "vocab.json")


def test_the_first_line_alone_is_a_comment(pair):
    folder = pair()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "merges.txt").write_text("#version: 0.2\n#version x\n\u0120 t\n")
    assert from_vocabulary({}, folder / "merges.txt", config)["model"]["merges"] == ["#version x", "\u0120 t"]
