"""Conversations of several turns."""

from typing import Any

from torchtune_lite.data import (
    DataFiles,
    Filter,
    OnBadSample,
    OnLongSample,
    OpenAIToMessages,
    SFTDataset,
    ShareGPTToMessages,
    load_rows,
    refuse_packed,
)
from torchtune_lite.errors import ConfigError

STYLES = {transform.style: transform for transform in (OpenAIToMessages, ShareGPTToMessages)}


def chat_dataset(
    tokenizer: Any,
    *,
    source: str,
    conversation_column: str,
    conversation_style: str,
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    split: str = "train",
    train_on_input: bool = False,
    new_system_prompt: str | None = None,
    packed: bool = False,
    filter_fn: Filter | None = None,
    on_bad_sample: OnBadSample = "error",
    on_long_sample: OnLongSample = "truncate",
) -> SFTDataset:
    """Builds a data set from the conversations in one column; the assistant's turns are in the loss.

    `conversation_style`: `openai` (role, content) or `sharegpt` (from, value). `source`, `data_files`, `field`, `name`,
    `split` and `filter_fn` are those of `data.load_rows`. `train_on_input` puts every turn in the loss.
    `new_system_prompt` replaces the conversations' own; None keeps it. `on_bad_sample` and
    `on_long_sample` are those of `data.SFTDataset`.
    """
    refuse_packed(packed)
    if conversation_style not in STYLES:
        raise ConfigError(f"conversation_style={conversation_style!r} is not one of {', '.join(STYLES)}")
    rows = load_rows(
        source,
        data_files=data_files,
        field=field,
        name=name,
        split=split,
        filter_fn=filter_fn,
        on_bad_sample=on_bad_sample,
    )
    to_messages = STYLES[conversation_style](conversation_column, train_on_input, new_system_prompt)
    return SFTDataset(rows, to_messages, tokenizer, on_bad_sample=on_bad_sample, on_long_sample=on_long_sample)
