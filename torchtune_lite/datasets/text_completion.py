"""Plain text, every token in the loss."""

from typing import Any

from torchtune_lite.data import (
    ColumnText,
    DataFiles,
    Filter,
    OnBadSample,
    OnLongSample,
    SFTDataset,
    TextTokens,
    load_rows,
    refuse_packed,
)


def text_completion_dataset(
    tokenizer: Any,
    source: str,
    column: str = "text",
    add_eos: bool = True,
    packed: bool = False,
    split_across_pack: bool = True,
    split: str = "train",
    filter_fn: Filter | None = None,
    *,
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    on_bad_sample: OnBadSample = "error",
    on_long_sample: OnLongSample = "truncate",
) -> SFTDataset:
    """Builds a data set from a column of text, without any template.

    `source`, `data_files`, `field`, `name`, `split` and `filter_fn` are those of `data.load_rows`. A text longer than
    the tokenizer's `max_seq_len` is cut. `split_across_pack` has no effect without packing. `on_bad_sample` and
    `on_long_sample` are those of `data.SFTDataset`.
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
        ColumnText(column),
        TextTokens(tokenizer, add_eos),
        on_bad_sample=on_bad_sample,
        on_long_sample=on_long_sample,
    )
