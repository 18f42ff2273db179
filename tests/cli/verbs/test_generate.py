"""Which of the words is the prompt."""

import pytest

from tests.cli.words import settings
from tests.demo_run import BASE
from torchtune_lite.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "prompt", "changes"),
    [
        (["a=b"], "a=b", {}),
        ([""], "", {}),
        (["e = mc^2", "seed=1"], "e = mc^2", {"seed": 1}),
        (["seed=1", "E=mc^2"], "E=mc^2", {"seed": 1}),
        (["--top-k", "3", "two words"], "two words", {"top_k": 3}),
        (["~tokenizer.max_seq_len", "x"], "x", {}),
        (["~", "seed=2"], "~", {"seed": 2}),
    ],
)
def test_what_sets_no_key_is_the_prompt(words, given, prompt, changes):
    cfg = settings([word for word in words("generate", BASE, *given) if word != "~tokenizer.max_seq_len"])
    assert cfg.prompt == {"user": prompt}
    assert {key: getattr(cfg, key) for key in changes} == changes


def test_a_prompt_that_is_not_one_is_said(words):
    with pytest.raises(ConfigError, match="there are 2 prompts, 'a', 'b'; put one in quotes"):
        words("generate", BASE, "a", "b", "seed=1")
    with pytest.raises(ConfigError, match="override 'temperatur=1': unknown key 'temperatur'; did you mean"):
        settings(words("generate", BASE, "a", "temperatur=1"))
    cfg = settings(words("generate", BASE, "--file", "a b.jsonl", "--out", "c"))
    assert (cfg.prompt, cfg.file, cfg.out) == (None, "a b.jsonl", "c")
