"""The shared part of all dataset builders: their arguments, and the way from a source to samples."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from torchtune_lite.data import (
    DataFiles,
    Filter,
    OnBadSample,
    OnLongSample,
    PackedDataset,
    SFTDataset,
    StreamDataset,
    filtered,
    load_rows,
    open_stream,
)
from torchtune_lite.errors import ConfigError


def dataset_builder(
    dataset: type = SFTDataset, source: Any = inspect.Parameter.empty
) -> Callable[[Callable], Callable]:
    """Make a builder of a function that takes a tokenizer and its own arguments and returns `prepare` and `tokenize`.

    The builder takes the arguments of that function with `source` after the tokenizer, where `source` here is the
    default, and those of `samples`; it builds a `dataset`. `inspect.signature` shows them all, so that a config is
    checked against them.
    """

    def decorate(own: Callable[..., tuple[Callable, Callable]]) -> Callable[..., Any]:
        parameters = list(inspect.signature(own).parameters.values())
        names = [parameter.name for parameter in parameters]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        where = inspect.Parameter("source", kind, default=source, annotation=str | Path)
        signature = inspect.Signature([parameters[0], where, *parameters[1:], *SHARED], return_annotation=dataset)

        @wraps(own)
        def build(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            mine = {name: given.arguments.pop(name) for name in names}
            return samples(dataset, lambda: own(**mine), **given.arguments)

        build.__signature__ = signature
        return build

    return decorate


def samples(
    dataset: type,
    transforms: Callable[[], tuple[Callable, Callable]],
    source: str | Path,
    *,
    data_files: DataFiles = None,
    field: str | None = None,
    name: str | None = None,
    split: str = "train",
    packed: bool = False,
    streaming: bool = False,
    filter_fn: Filter | None = None,
    on_bad_sample: OnBadSample = "error",
    on_long_sample: OnLongSample = "truncate",
) -> Any:
    """Build a data set from the rows of a source.

    `source`, `data_files`, `field`, `name`, `split` and `filter_fn` are those of `data.load_rows`, `on_bad_sample` and
    `on_long_sample` those of `data.SFTDataset`. `packed` fills micro-batches with samples, as `data.PackedDataset`
    says; `streaming` reads one file at a time, in a `data.StreamDataset`. `transforms` gives the data set's `prepare`
    and `tokenize`.
    """
    if packed and dataset is not SFTDataset:
        raise ConfigError("packed=True: pairs cannot be packed; set packed=False")
    prepare, tokenize = transforms()
    if packed:
        tokenize = getattr(tokenize, "for_packs", tokenize)

    def build(rows: Any) -> Any:
        options = {"on_bad_sample": on_bad_sample, "on_long_sample": on_long_sample, "tokenize_all": packed}
        unpacked = dataset(rows, prepare, tokenize, **options)
        return PackedDataset(unpacked, tokenize.max_seq_len) if packed else unpacked

    source = str(source)
    where = {"data_files": data_files, "field": field, "name": name, "split": split}
    if streaming:
        return StreamDataset(open_stream(source, **where), lambda rows: build(filtered(rows, filter_fn)))
    return build(load_rows(source, **where, filter_fn=filter_fn))


SHARED = [each for each in inspect.signature(samples).parameters.values() if each.kind is each.KEYWORD_ONLY]
