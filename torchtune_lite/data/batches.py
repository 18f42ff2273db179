"""Batches: samples → padded tensors, in an order that only the seed and the epoch decide.

b samples of a micro-batch, s tokens of its longest sample.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchtune_lite.data.sft import CROSS_ENTROPY_IGNORE_IDX
from torchtune_lite.errors import DataError

Batch = dict[str, Tensor]
T = TypeVar("T")


def padded_collate_sft(
    batch: Sequence[dict[str, list[int]]], padding_idx: int = 0, ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX
) -> Batch:
    """Pads samples on the right to the longest: `tokens`, `labels` [b, s] int64."""
    shape = len(batch), max(len(sample["tokens"]) for sample in batch)
    tokens, labels = torch.full(shape, padding_idx), torch.full(shape, ignore_idx)
    for row, sample in enumerate(batch):
        tokens[row, : len(sample["tokens"])] = torch.tensor(sample["tokens"])
        labels[row, : len(sample["labels"])] = torch.tensor(sample["labels"])
    return {"tokens": tokens, "labels": labels}


class Batches:
    """Micro-batches of `batch_size` samples on the CPU; the last of an epoch may be smaller.

    `vocab_size` is the number of the model's embeddings: a token id beyond it raises DataError naming its row; None
    checks nothing.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        pad_id: int,
        vocab_size: int | None = None,
        collate: Callable[..., Batch] = padded_collate_sft,
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.pad_id, self.vocab_size, self.collate = pad_id, vocab_size, collate

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the micro-batches of an epoch from number `start` on; draws nothing from the global random state."""
        order = self._order(epoch)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            indices = order[first : first + self.batch_size]
            batch = self.collate([self.dataset[i] for i in indices], padding_idx=self.pad_id)
            self._check_ids(batch["tokens"], indices)
            yield batch

    def where(self, epoch: int, start: int, num_batches: int, shown: int = 16) -> str:
        """Says where the rows of `num_batches` micro-batches of an epoch stand, the first `shown` by name."""
        rows = self._order(epoch)[start * self.batch_size : (start + num_batches) * self.batch_size]
        more = f" and {len(rows) - shown:,} more" if len(rows) > shown else ""
        return ", ".join(map(self._where, rows[:shown])) + more

    def fingerprint(self, looked_at: int = 256) -> str:
        """Says how many samples there are, and hashes up to `looked_at` of them, evenly spread, in tokens."""
        count = len(self.dataset)
        samples = [self.dataset[i] for i in sorted({k * count // looked_at for k in range(looked_at)})]
        return f"{count:,} samples with hash {hashlib.sha256(str(samples).encode()).hexdigest()[:12]}"

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.dataset)))
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order

    def _where(self, index: int) -> str:
        """Says where a row stands; a data set that knows no places gives its number."""
        return getattr(self.dataset, "where", "sample {}".format)(index)

    def _check_ids(self, tokens: Tensor, indices: Sequence[int]) -> None:
        if self.vocab_size is None or tokens.max() < self.vocab_size:
            return
        row = int(tokens.amax(1).argmax())
        raise DataError(
            f"{self._where(indices[row])}: token id {int(tokens[row].max()):,} is beyond the model's "
            f"{self.vocab_size:,} embeddings; use the tokenizer that came with the checkpoint"
        )


def windows(iterable: Iterable[T], n: int) -> Iterator[list[T]]:
    """Yields lists of n items in turn, the last one with what is left."""
    window: list[T] = []
    for item in iterable:
        window.append(item)
        if len(window) == n:
            yield window
            window = []
    if window:
        yield window


def num_label_tokens(batches: Iterable[Batch]) -> int:
    """Counts the tokens that have a loss."""
    return sum(int((batch["labels"] != CROSS_ENTROPY_IGNORE_IDX).sum()) for batch in batches)


def num_real_tokens(batches: Iterable[Batch], pad_id: int) -> int:
    """Counts the tokens that are no padding."""
    return sum(int((batch["tokens"] != pad_id).sum()) for batch in batches)
