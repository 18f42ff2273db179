"""A recipe's training data, counted and spelled out before a step runs; `tune inspect` prints them."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from torchtune_lite import config
from torchtune_lite.data import (
    CROSS_ENTROPY_IGNORE_IDX,
    PackedDataset,
    StreamDataset,
    check_vocabulary,
    limit_length,
    make_batches,
    new_tokens,
    steps_per_epoch,
)
from torchtune_lite.datasets.mixing import ConcatDataset, concatenated, validation_sets
from torchtune_lite.errors import ConfigError, TuneError, warn

MOST_BARS = 8
DECODED_BEFORE = 16  # tokens that a run of text is decoded with, of which the last may be part of a character


def inspect_data(cfg: Any, num_samples: int = 3) -> dict[str, Any]:
    """Tokenise the data sets of a recipe's settings; return what JSON can hold, by key (`dataset_val/NAME` of several).

    Each has `rows`, `samples`, `tokens`, `label_tokens`, `lengths` (min, median, mean, max), `histogram` (first and
    last length, samples), `cut`, `without_label`, `bad` (None where the data set does not count them) and in `shown`
    the first `num_samples`. Of a stream it is the first part. Data and tokenizer are read, no weights. Raise DataError
    as the run would.
    """
    if getattr(cfg, "dataset", None) is None:
        raise ConfigError("the recipe of this config has no key 'dataset', so it trains on nothing")
    checkpointer, problem = _checkpointer(cfg)
    tokenizer = config.instantiate(cfg.tokenizer, defaults=getattr(checkpointer, "tokenizer_args", {}))
    if problem:
        warn(f"without the model's limits: {problem}")
    elif cfg.model is not None:
        _apply_limits(cfg, tokenizer, checkpointer)
    report: dict[str, Any] = {"max_seq_len": tokenizer.max_seq_len}
    data = {"dataset": concatenated(config.instantiate(cfg.dataset, tokenizer), getattr(cfg, "dataset_weights", None))}
    for key in ("dataset_val", "dataset_eval"):
        sets = validation_sets(config.instantiate(getattr(cfg, key, None), tokenizer), key)
        data |= {f"{key}/{name}" if name else key: dataset for name, dataset in sets.items()}
    for key, dataset in data.items():
        first = dataset.first() if isinstance(dataset, StreamDataset) else dataset
        report[key] = _describe(first, tokenizer, num_samples)
    batch_size, accumulation = getattr(cfg, "batch_size", 1), getattr(cfg, "gradient_accumulation_steps", 1)
    batches = make_batches(data["dataset"], batch_size, seed=0, shuffle=False, pad_id=tokenizer.pad_id)
    most = getattr(cfg, "max_steps_per_epoch", None)
    report["steps_per_epoch"] = steps_per_epoch(batches, accumulation, most)
    return report


def _checkpointer(cfg: Any) -> tuple[Any, str]:
    """Open the checkpoint, and say why it cannot be."""
    try:
        return config.instantiate(getattr(cfg, "checkpointer", None)), ""
    except TuneError as error:
        return None, str(error)


def _apply_limits(cfg: Any, tokenizer: Any, checkpointer: Any) -> None:
    """Limit the tokenizer to the model's positions as a recipe does, where the checkpoint tells them."""
    try:
        with torch.device("meta"):
            model = config.instantiate(cfg.model, defaults=getattr(checkpointer, "decoder_args", {}))
    except TuneError as error:
        warn(f"without the model's limits: {error}")
        return
    if not new_tokens(tokenizer, model.config.vocab_size, getattr(model, "train_embeddings", None)):
        check_vocabulary(tokenizer, model.config.vocab_size)
    limit_length(tokenizer, model.config.max_seq_len)


def _describe(dataset: Any, tokenizer: Any, num_samples: int) -> dict[str, Any]:
    lengths, label_tokens, first = [], 0, []
    for i in range(len(dataset)):
        sample = dataset[i]
        if not sample["tokens"]:  # of a large data set, which leaves rows out as late as this
            continue
        first += [i] * (len(first) < num_samples)
        lengths.append(len(sample["tokens"]))
        label_tokens += sum(label != CROSS_ENTROPY_IGNORE_IDX for label in sample["labels"])
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    parts = [part.dataset if isinstance(part, PackedDataset) else part for part in parts]
    counted = {name: _total(parts, name) for name in ("long", "unlabelled", "bad")}
    ordered = sorted(lengths)
    return {
        "rows": len(dataset) if counted["bad"] is None else sum(len(part.rows) for part in parts),
        "samples": len(lengths),
        "tokens": sum(lengths),
        "label_tokens": label_tokens,
        "lengths": {
            "min": ordered[0],
            "median": ordered[len(ordered) // 2],
            "mean": round(sum(lengths) / len(lengths), 1),
            "max": ordered[-1],
        },
        "histogram": histogram(lengths),
        "cut": counted["long"],
        "without_label": counted["unlabelled"],
        "bad": counted["bad"],
        "shown": [_show(dataset, i, tokenizer) for i in first],
    }


def _total(parts: Sequence[Any], name: str) -> int | None:
    return sum(len(getattr(part, name)) for part in parts) if all(hasattr(part, name) for part in parts) else None


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Count lengths in at most `MOST_BARS` classes of one round width: (first, last, count), empty ones included."""
    width = next(
        w for n in range(32) for w in (2**n, 3 * 2**n // 2) if max(lengths) // w - min(lengths) // w < MOST_BARS
    )
    first, last = min(lengths) // width, max(lengths) // width
    counts = [0] * (last - first + 1)
    for length in lengths:
        counts[length // width - first] += 1
    return [((first + i) * width, (first + i + 1) * width - 1, count) for i, count in enumerate(counts)]


def _show(dataset: Any, index: int, tokenizer: Any) -> dict[str, Any]:
    sample = dataset[index]
    where = getattr(dataset, "where", "sample {}".format)(index)
    return {"where": where, "tokens": len(sample["tokens"]), "pieces": list(pieces(sample, tokenizer))}


def pieces(sample: dict[str, list[int]], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Spell a sample out: runs of `text` that are in the loss (`label`) or not, special tokens by their names."""
    in_loss = [False] + [label != CROSS_ENTROPY_IGNORE_IDX for label in sample["labels"][:-1]]  # labels are shifted
    names = special_names(tokenizer)
    before: list[int] = []  # the last few ordinary tokens since a special one
    for (name, label), run in groupby(
        zip(sample["tokens"], in_loss, strict=True), key=lambda each: (names.get(each[0]), each[1])
    ):
        ids = [token for token, _ in run]
        if name is not None:
            before = []
            yield {"text": name * len(ids), "label": label, "special": True}
            continue
        text, known = tokenizer.decode(before + ids), tokenizer.decode(before)  # alone, a run would lose its space
        before = (before + ids)[-DECODED_BEFORE:]
        yield {
            "text": text[len(known) :] if text.startswith(known) else tokenizer.decode(ids),
            "label": label,
            "special": False,
        }


def special_names(tokenizer: Any) -> dict[int, str]:
    """Name the ids that stand for no text."""
    named = {value: key for key, value in getattr(tokenizer, "special_tokens", {}).items()}
    ends = {getattr(tokenizer, "bos_id", None): "<bos>", getattr(tokenizer, "eos_id", None): "<eos>"}
    return {**ends, **named}
