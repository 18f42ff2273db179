"""Conversations of several turns."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torchtune_lite.data import MaskingStrategy, OpenAIToMessages, ShareGPTToMessages
from torchtune_lite.datasets.builder import dataset_builder
from torchtune_lite.errors import ConfigError

STYLES = {transform.style: transform for transform in (OpenAIToMessages, ShareGPTToMessages)}


@dataset_builder()
def chat_dataset(
    tokenizer: Any,
    *,
    conversation_column: str,
    conversation_style: str,
    train_on_input: bool = False,
    new_system_prompt: str | None = None,
    masking_strategy: MaskingStrategy | None = None,
) -> tuple[Callable, Callable]:
    """Build a data set from the conversations in one column; the assistant's turns are in the loss.

    `conversation_style`: `openai` (role, content) or `sharegpt` (from, value). `train_on_input` puts every turn in the
    loss; `masking_strategy`, where given, decides instead. `new_system_prompt` replaces the conversations' own; None
    keeps it. The other arguments are those of `builder.samples`.
    """
    if conversation_style not in STYLES:
        raise ConfigError(f"conversation_style={conversation_style!r} is not one of {', '.join(STYLES)}")
    to_messages = STYLES[conversation_style]
    return to_messages(conversation_column, train_on_input, new_system_prompt, masking_strategy), tokenizer


slimorca_dataset = partial(
    chat_dataset,
    source="Open-Orca/SlimOrca-Dedup",
    conversation_column="conversations",
    conversation_style="sharegpt",
)
