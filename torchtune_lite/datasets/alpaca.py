"""Alpaca: an instruction, perhaps an input, and an output."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torchtune_lite.data import AlpacaToMessages, MaskingStrategy
from torchtune_lite.datasets.builder import dataset_builder
from torchtune_lite.utils import get_logger

log = get_logger()


@dataset_builder(source="tatsu-lab/alpaca")
def alpaca_dataset(
    tokenizer: Any,
    *,
    column_map: Mapping[str, str] | None = None,
    train_on_input: bool = True,
    masking_strategy: MaskingStrategy | None = None,
) -> tuple[Callable, Callable]:
    """Build a data set with the Alpaca prompt around the columns `instruction`, `input` and `output`.

    `column_map` gives the file's own column names. `train_on_input` leaves the prompt in the loss; `masking_strategy`,
    where given, decides instead. A prompt template of the tokenizer is put around the Alpaca prompt, as torchtune does,
    with a warning. The other arguments are those of `builder.samples`.
    """
    if tokenizer.prompt_template is not None:
        _warn_of_two_templates(type(tokenizer.prompt_template).__name__)
    return AlpacaToMessages(train_on_input, column_map, masking_strategy), tokenizer


alpaca_cleaned_dataset = partial(alpaca_dataset, source="yahma/alpaca-cleaned")


@cache
def _warn_of_two_templates(template: str) -> None:
    log.warning(
        f"two prompt templates: tokenizer.prompt_template ({template}) goes around the prompt of alpaca_dataset, as in "
        "torchtune; set tokenizer.prompt_template=null for the Alpaca prompt alone"
    )
