"""Alpaca: an instruction, perhaps an input, and an output."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from torchtune_lite.data import (
    AlpacaToMessages,
    DataFiles,
    Filter,
    OnBadSample,
    OnLongSample,
    SFTDataset,
    load_rows,
    refuse_packed,
)
from torchtune_lite.utils import get_logger

log = get_logger()


def alpaca_dataset(
    tokenizer: Any,
    *,
    source: str = "tatsu-lab/alpaca",
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    split: str = "train",
    column_map: Mapping[str, str] | None = None,
    train_on_input: bool = True,
    packed: bool = False,
    filter_fn: Filter | None = None,
    on_bad_sample: OnBadSample = "error",
    on_long_sample: OnLongSample = "truncate",
) -> SFTDataset:
    """Builds a data set with the Alpaca prompt around the columns `instruction`, `input` and `output`.

    `source`, `data_files`, `field`, `name`, `split` and `filter_fn` are those of `data.load_rows`; `column_map` gives
    the file's own column names. A prompt template of the tokenizer is put around the Alpaca prompt, as torchtune does,
    with a warning. `on_bad_sample` and `on_long_sample` are those of `data.SFTDataset`.
    """
    refuse_packed(packed)
    rows = load_rows(
        source,
        data_files=data_files,
        field=field,
        name=name,
        split=split,
        filter_fn=filter_fn,
        on_bad_sample=on_bad_sample,
    )
    if tokenizer.prompt_template is not None:
        _warn_of_two_templates(type(tokenizer.prompt_template).__name__)
    return SFTDataset(
        rows,
        AlpacaToMessages(train_on_input, column_map),
        tokenizer,
        on_bad_sample=on_bad_sample,
        on_long_sample=on_long_sample,
    )


alpaca_cleaned_dataset = partial(alpaca_dataset, source="yahma/alpaca-cleaned")


@cache
def _warn_of_two_templates(template: str) -> None:
    log.warning(
        f"two prompt templates: tokenizer.prompt_template ({template}) goes around the prompt of alpaca_dataset, as in "
        "torchtune; set tokenizer.prompt_template=null for the Alpaca prompt alone"
    )
