"""Questions and answers in two columns."""

from collections.abc import Mapping
from typing import Any

from torchtune_lite.data import (
    DataFiles,
    Filter,
    InputOutputToMessages,
    OnBadSample,
    OnLongSample,
    SFTDataset,
    load_rows,
    refuse_packed,
)


def instruct_dataset(
    tokenizer: Any,
    *,
    source: str,
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    split: str = "train",
    column_map: Mapping[str, str] | None = None,
    train_on_input: bool = False,
    new_system_prompt: str | None = None,
    packed: bool = False,
    filter_fn: Filter | None = None,
    on_bad_sample: OnBadSample = "error",
    on_long_sample: OnLongSample = "truncate",
) -> SFTDataset:
    """Builds a data set from the columns `input` and `output`, or those that `column_map` names.

    `source`, `data_files`, `field`, `name`, `split` and `filter_fn` are those of `data.load_rows`. `train_on_input`
    puts the question in the loss too. `new_system_prompt`: a system prompt for every sample; None for none.
    `on_bad_sample` and `on_long_sample` are those of `data.SFTDataset`.
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
    return SFTDataset(
        rows,
        InputOutputToMessages(train_on_input, column_map, new_system_prompt),
        tokenizer,
        on_bad_sample=on_bad_sample,
        on_long_sample=on_long_sample,
    )
