import json

import pytest
import tokenizers

from torchtune_lite.errors import ConfigError
from torchtune_lite.export.gguf.pre_tokenizers import NAMES, PROBE, fingerprint, name_of, steps_of


def tokenizer_json(name):
    return {"pre_tokenizer": steps_of(name), "model": {"type": "BPE", "ignore_merges": NAMES[name].ignore_merges}}


def encode(text):
    return [1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_found_by_its_steps_or_one_that_splits_alike_is(name):
    found = name_of(tokenizer_json(name), encode)
    assert NAMES[found].patterns == NAMES[name].patterns
    assert NAMES[found].ignore_merges == NAMES[name].ignore_merges


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_such_as_the_library_takes(name):

    text = json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": steps_of(name),
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        }
    )
    pre_tokenizer = tokenizers.Tokenizer.from_str(text).pre_tokenizer
    words = [word for word, _ in pre_tokenizer.pre_tokenize_str("It's 12345 o'clock,\n\n  now")]
    digits = {"smollm": 1, "refact": 1, "qwen2": 1, "deepseek-r1-qwen": 1, "tekken": 1, "seed-coder": 1, "gpt-2": 5}
    assert max(len(word.strip("Ġ")) for word in words if word.strip("Ġ").isdigit()) == digits.get(name, 3)


def test_tokens_decide_between_names_and_contradict_a_wrong_file(monkeypatch):
    monkeypatch.setattr(
        "torchtune_lite.export.gguf.pre_tokenizers.fingerprint", lambda encode: NAMES["refact"].hashes[0]
    )
    assert name_of(tokenizer_json("smollm"), encode) == "refact"
    with pytest.raises(ConfigError, match="splits texts as 'qwen2' by its steps and as 'refact' by its tokens"):
        name_of(tokenizer_json("qwen2"), encode)
    assert name_of({"pre_tokenizer": {"type": "Whitespace"}, "model": {}}, encode) == "refact"  # by its tokens alone


def test_an_unknown_way_to_split_is_one_line():
    with pytest.raises(ConfigError, match="in a way that has no name here, and a guess would change its tokens"):
        name_of({"pre_tokenizer": {"type": "Whitespace"}, "model": {"type": "BPE"}}, encode)
    with pytest.raises(ConfigError, match="its tokenizer splits texts as 'default', which is not known here"):
        steps_of("default")


def test_a_fingerprint_is_that_of_the_tokens():
    seen = []
    assert len(fingerprint(lambda text: seen.append(text) or [1])) == 64 and seen == [PROBE]
    assert fingerprint(lambda text: [1]) != fingerprint(lambda text: [2])
