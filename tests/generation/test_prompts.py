"""Prompts are encoded as in training, and what cannot be one is named."""

import pytest

from torchtune_lite.data import SentencePieceTokenizer
from torchtune_lite.errors import ConfigError
from torchtune_lite.generation import cap_length, encode_prompt


def test_an_answer_gets_the_room_that_is_left():
    assert cap_length(7, 41, 48) == cap_length(7, 100, 48) == 41 and cap_length(47, 5, 48) == 1
    with pytest.raises(ConfigError, match="^a prompt of 48 tokens leaves no room for an answer.*max_seq_len is 48"):
        cap_length(48, 1, 48)


@pytest.fixture(scope="module")
def tokenizer(char_model):
    return SentencePieceTokenizer(char_model, prompt_template={"user": ["Q ", " A"]})


def test_a_text_is_encoded_as_it_is_and_roles_by_the_template(tokenizer, spell):
    assert spell(encode_prompt(tokenizer, "the fox")) == "⟨▁the▁fox"
    assert spell(encode_prompt(tokenizer, {"user": "the fox"})) == "⟨▁Q▁the▁fox▁▁A"
    both = {"user": "b", "system": "a", "assistant": None}  # the system prompt comes first, wherever it stands
    assert spell(encode_prompt(tokenizer, both)) == "⟨▁aQb▁A"
    assert spell(encode_prompt(tokenizer, "")) == "⟨"


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ({}, "prompt has no text; set prompt.user=..."),
        ({"system": None, "user": None}, "prompt has no text"),
        ({"human": "hi"}, "prompt.human is not a role; allowed are system, user, assistant"),
        ({"user": "x" * 60}, "prompt is longer than tokenizer.max_seq_len=32"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(prompt, problem, char_model):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        encode_prompt(SentencePieceTokenizer(char_model, max_seq_len=32), prompt)


def test_an_empty_prompt_needs_a_token_to_start_from(tokenizer):
    class WithoutBOS:
        def encode(self, text, add_bos, add_eos):
            return []

    with pytest.raises(ConfigError, match="^prompt is empty, and the tokenizer has no BOS"):
        encode_prompt(WithoutBOS(), "")
