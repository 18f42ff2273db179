"""Collating: the samples of a micro-batch as tensors.

b samples, s tokens of the longest, t tokens of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchtune_lite.data.labels import CROSS_ENTROPY_IGNORE_IDX
from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted

Batch = dict[str, Tensor | list[int]]
Sample = dict[str, list[int]]


def padded_collate_sft(
    batch: Sequence[Sample], padding_idx: int = 0, ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX
) -> Batch:
    """Pad samples on the right to the longest: `tokens`, `labels` [b, s] int64, `lengths` [b], without the padding.

    Raise DataError for a sample that has other labels than tokens.
    """
    _check(batch)
    lengths = torch.tensor([len(sample["tokens"]) for sample in batch])
    shape = len(batch), int(lengths.max())
    tokens, labels = torch.full(shape, padding_idx), torch.full(shape, ignore_idx)
    for row, sample in enumerate(batch):
        tokens[row, : len(sample["tokens"])] = torch.tensor(sample["tokens"])
        labels[row, : len(sample["labels"])] = torch.tensor(sample["labels"])
    return {"tokens": tokens, "labels": labels, "lengths": lengths}


def padding_free_collate_sft(batch: Sequence[Sample], padding_idx: int = 0) -> Batch:
    """Join samples in one row: `tokens`, `labels` [1, t] int64, and `seq_lens`, the length of each.

    A model that is given `seq_lens` computes each sample as if it were alone, and no padding. Raise DataError for a
    sample that has other labels than tokens.
    """
    _check(batch)
    tokens, labels = (torch.tensor([[x for sample in batch for x in sample[name]]]) for name in ("tokens", "labels"))
    return {"tokens": tokens, "labels": labels, "seq_lens": [len(sample["tokens"]) for sample in batch]}


def _check(batch: Sequence[Sample]) -> None:
    for sample in batch:
        if "tokens" not in sample or "labels" not in sample:
            raise DataError(f"a sample has {', '.join(sample)}; this collate joins tokens and labels")
        tokens, labels = len(sample["tokens"]), len(sample["labels"])
        if tokens != labels:
            raise DataError(
                f"a sample has {counted(labels, 'label')} for {counted(tokens, 'token')}; "
                "give each token one, -100 for none"
            )


COLLATES = {"padding_free": padding_free_collate_sft, "padded": padded_collate_sft}
"""The choices of a recipe's key `collate`."""
