"""Pairs of a chosen and a rejected answer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torchtune_lite.data import ChosenRejectedToMessages, MaskingStrategy, PairTokens, PreferenceDataset
from torchtune_lite.datasets.builder import dataset_builder


@dataset_builder(PreferenceDataset)
def preference_dataset(
    tokenizer: Any,
    *,
    column_map: Mapping[str, str] | None = None,
    train_on_input: bool = False,
    new_system_prompt: str | None = None,
    masking_strategy: MaskingStrategy | None = None,
) -> tuple[Callable, Callable]:
    """Build pairs from the columns `chosen` and `rejected`, conversations or answers to the column `prompt`.

    `column_map` gives the file's own names. `train_on_input` puts the prompt in the loss; `masking_strategy`, where
    given, decides instead. `new_system_prompt` replaces the conversations' own; None keeps it. The other arguments are
    those of `builder.samples`.
    """
    transform = ChosenRejectedToMessages(train_on_input, column_map, new_system_prompt, masking_strategy)
    return transform, PairTokens(tokenizer)


hh_rlhf_helpful_dataset = partial(preference_dataset, source="RLHFlow/HH-RLHF-Helpful-standard")
stack_exchange_paired_dataset = partial(
    preference_dataset,
    source="lvwerra/stack-exchange-paired",
    data_files="data/rl/*.parquet",
    column_map={"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
)
