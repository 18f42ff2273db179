"""Questions and answers in two columns."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torchtune_lite.data import InputOutputToMessages, MaskingStrategy
from torchtune_lite.datasets.builder import dataset_builder


@dataset_builder()
def instruct_dataset(
    tokenizer: Any,
    *,
    column_map: Mapping[str, str] | None = None,
    train_on_input: bool = False,
    new_system_prompt: str | None = None,
    masking_strategy: MaskingStrategy | None = None,
) -> tuple[Callable, Callable]:
    """Build a data set from the columns `input` and `output`, or those that `column_map` names.

    `train_on_input` puts the question in the loss too; `masking_strategy`, where given, decides instead.
    `new_system_prompt`: a system prompt for every sample; None for none. The other arguments are those of
    `builder.samples`.
    """
    return InputOutputToMessages(train_on_input, column_map, new_system_prompt, masking_strategy), tokenizer


grammar_dataset = partial(instruct_dataset, source="liweili/c4_200m")
samsum_dataset = partial(
    instruct_dataset, source="Samsung/samsum", column_map={"input": "dialogue", "output": "summary"}
)
