"""Prompts as token ids, and the room that they leave."""

from collections.abc import Mapping
from typing import Any

from torchtune_lite.data import Message
from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import counted

PROMPT_ROLES = ("system", "user", "assistant")
"""The keys of a prompt, in the order of its messages; an assistant's text is a beginning that is continued."""


def cap_length(prompt_len: int, max_new_tokens: int, max_seq_len: int) -> int:
    """Return how many of `max_new_tokens` fit after a prompt; ConfigError for a prompt that leaves no room for one."""
    if prompt_len >= max_seq_len:
        raise ConfigError(
            f"a prompt of {counted(prompt_len, 'token')} leaves no room for an answer: the model's max_seq_len is "
            f"{max_seq_len}; shorten the prompt"
        )
    return min(max_new_tokens, max_seq_len - prompt_len)


def encode_prompt(tokenizer: Any, prompt: str | Mapping[str, str | None]) -> list[int]:
    """Encode a text as it is, or a mapping role → text (None: left out) through the tokenizer's prompt template.

    Raise ConfigError for a prompt without a text, one with a role that is not known, and one that would be cut.
    """
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt, add_bos=True, add_eos=False)
        if not tokens:
            raise ConfigError("prompt is empty, and the tokenizer has no BOS to start from")
        return tokens
    if unknown := [role for role in prompt if role not in PROMPT_ROLES]:
        raise ConfigError(f"prompt.{unknown[0]} is not a role; allowed are {', '.join(PROMPT_ROLES)}")
    messages = [Message(role, prompt[role]) for role in PROMPT_ROLES if prompt.get(role) is not None]
    if not messages:
        raise ConfigError("prompt has no text; set prompt.user=..., or prompt=... for one to continue")
    return tokens_of(tokenizer, {"messages": messages})


def tokens_of(tokenizer: Any, sample: Mapping[str, Any]) -> list[int]:
    """Return the tokens of a sample with `messages`, the last turn open; ConfigError for one that would be cut."""
    sample = tokenizer(sample, inference=True)
    if sample["truncated"]:
        raise ConfigError(f"prompt is longer than tokenizer.max_seq_len={tokenizer.max_seq_len}; raise it or set null")
    return sample["tokens"]


def put_question(template: str | None, question: str) -> str:
    """Put a question where `{question}` stands in a template, None for the question alone; ConfigError without that."""
    if template is None:
        return question
    if "{question}" not in template:
        raise ConfigError("question_template has no {question}, which stands for the question; add it")
    return template.replace("{question}", question)
