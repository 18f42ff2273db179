"""Batches: samples → tensors, in an order that only the seed and the epoch decide."""

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from random import Random
from typing import Any, TypeVar

from torchtune_lite.data.batching import plan
from torchtune_lite.data.batching.collate import COLLATES, Batch
from torchtune_lite.data.batching.fingerprints import Fingerprint, row_hashes, samples_line
from torchtune_lite.data.batching.workers import made_ahead
from torchtune_lite.data.labels import CROSS_ENTROPY_IGNORE_IDX
from torchtune_lite.errors import ConfigError, DataError

T = TypeVar("T")


class WaitClock:
    """A meter of the time that steps wait for data."""

    def __init__(self) -> None:
        self._waited, self._since = 0.0, time.perf_counter()

    def through(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items, and notes how long each took to come."""
        while True:
            asked = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            yield item

    def take_share(self) -> float:
        """Return the share of the time since it was last asked that was spent on waiting."""
        now = time.perf_counter()
        share = self._waited / (now - self._since)
        self._waited, self._since = 0.0, now
        return share


class Batches:
    """Micro-batches of `batch_size` samples on the CPU; the last of an epoch may be smaller.

    Those of a data set that is packed (it has a `pack_len`) take as many samples as fit in `batch_size · pack_len`
    tokens. `collate`: `padding_free`, `padded`, or a function of the samples and `padding_idx`. `group_by_length` puts
    samples of about the same length together. `num_workers` processes make batches ahead of the step; 0: none.
    `vocab_size` is the number of the model's embeddings: a token id beyond it raises DataError naming its row; None
    checks nothing. Samples without tokens are left out. A batch of several data sets says in `sources` which each of
    its samples, sorted by it, is from. Of `processes` that share the micro-batches, this one has those of its `rank`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int | str,
        shuffle: bool,
        pad_id: int,
        vocab_size: int | None = None,
        collate: str | Callable[..., Batch] = "padding_free",
        group_by_length: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.rank, self.processes = rank, processes
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.pad_id, self.vocab_size, self.num_workers = pad_id, vocab_size, num_workers
        self.collate = COLLATES[collate] if isinstance(collate, str) else collate
        self.pack_len = getattr(dataset, "pack_len", None)
        if self.pack_len and self.collate is not COLLATES["padding_free"]:
            raise ConfigError("dataset.packed=True leaves nothing to pad; set collate=padding_free, or packed=False")
        self.lengths = self._lengths() if group_by_length or self.pack_len else None
        self._source = getattr(dataset, "source", None)  # of several data sets
        self._planned: tuple[tuple[int | str, int], plan.Plan] | None = None  # of the last epoch asked for
        self.cursor = None  # the step and the seed say it all
        self._clock = WaitClock()
        self.take_wait_share = self._clock.take_share

    def __len__(self) -> int:
        return -(-self._num_planned // self.processes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of an epoch from number `start` on; draws nothing from the global random state."""
        share = plan.Share(self._plan(epoch), self.rank, self.processes, len(self))
        return self._clock.through(made_ahead(self._make, share, self.num_workers, start))

    def every(self, step: int, start: int) -> Iterator[Batch]:
        """Yield each `step`-th micro-batch of the first epoch from number `start` on, of all that are planned."""
        share = plan.Share(self._plan(0), start, step)
        return self._clock.through(made_ahead(self._make, share, self.num_workers))

    def largest(self) -> Batch:
        """Make a micro-batch as large as one of any epoch may be, of its longest samples' lengths, with labels."""
        lengths = [self.pack_len] * self.batch_size if self.pack_len else sorted(self._lengths())[-self.batch_size :]
        samples = [{"tokens": [0] * length, "labels": [0] * length} for length in map(int, lengths) if length]
        return self.collate(samples, padding_idx=self.pad_id)

    def where(self, epoch: int, start: int, num_batches: int, shown: int = 16) -> str:
        """Say where the rows of `num_batches` micro-batches of each process stand, the first `shown` by name."""
        batches = self._plan(epoch)
        numbers = range(start * self.processes, min((start + num_batches) * self.processes, len(batches)))
        rows = [row for number in numbers for row in batches[number]]
        more = f" and {len(rows) - shown:,} more" if len(rows) > shown else ""
        return ", ".join(map(self._where, rows[:shown])) + more

    def fingerprint(self) -> Fingerprint:
        """Say what the data are known by when the run is resumed."""
        return {"samples": samples_line(self.dataset, self.pack_len), "rows": row_hashes(self.dataset)}

    def report_read(self) -> None:
        """Say of each large data set how many of the rows that were read were cut or left out."""
        for dataset in getattr(self.dataset, "datasets", [self.dataset]):
            whole = getattr(dataset, "dataset", dataset)  # of a packed one
            if hasattr(whole, "report_read"):
                whole.report_read()

    @cached_property
    def _num_planned(self) -> int:
        """Count the micro-batches of all processes; packs in the first epoch, which a later one has as many of."""
        return len(self._plan(0)) if self.pack_len else -(-len(self.dataset) // self.batch_size)

    def _plan(self, epoch: int) -> plan.Plan:
        """Return the samples of each micro-batch of an epoch."""
        if self._planned is None or self._planned[0] != (self.seed, epoch):
            self._planned = (self.seed, epoch), self._new_plan(epoch)
        return self._planned[1]

    def _new_plan(self, epoch: int) -> plan.Plan:
        rng = Random(f"{self.seed}/{epoch}")
        drawn = getattr(self.dataset, "order", None)  # of a mixture
        order = drawn(self.seed, epoch, self.shuffle) if drawn else array("q", range(len(self.dataset)))
        if self.shuffle:
            rng.shuffle(order)
        if self.pack_len:
            packs = plan.best_fit(order, self.lengths, self.batch_size * self.pack_len)
            if drawn and epoch:
                packs = plan.as_many(packs, self._num_planned)
            if self.shuffle:
                rng.shuffle(packs)
            return packs
        if self.lengths is not None:
            return plan.by_length(order, self.lengths, self.batch_size, rng)
        return plan.Chunks(order, self.batch_size)

    def _lengths(self) -> Any:
        """Return the tokens of each sample; a data set that does not know them is tokenised."""
        known = getattr(self.dataset, "lengths", None)
        return [len(self.dataset[i]["tokens"]) for i in range(len(self.dataset))] if known is None else known

    def _make(self, indices: Sequence[int]) -> Batch:
        if self._source:
            indices = sorted(indices, key=self._source)
        samples = [self.dataset[i] for i in indices]
        kept = [i for i, sample in enumerate(samples) if any(sample.values())]
        nothing = {"tokens": [self.pad_id], "labels": [CROSS_ENTROPY_IGNORE_IDX]}
        batch = self.collate([samples[i] for i in kept] or [nothing], padding_idx=self.pad_id)
        if self._source and kept:
            batch["sources"] = [self._source(indices[i]) for i in kept]
        if self.vocab_size is not None and batch["tokens"].max() >= self.vocab_size:
            self._refuse_id(indices, [max((max(each, default=0) for each in s.values()), default=0) for s in samples])
        return batch

    def _refuse_id(self, indices: Sequence[int], highest: list[int]) -> None:
        where, token = self._where(indices[highest.index(max(highest))]), max(*highest, self.pad_id)
        raise DataError(
            f"{where}: token id {token:,} is beyond the model's {self.vocab_size:,} embeddings; "
            "use the tokenizer that came with the checkpoint"
        )

    def _where(self, index: int) -> str:
        """Say where a row stands; a data set that knows no places gives its number."""
        return getattr(self.dataset, "where", "sample {}".format)(index)


def windows(iterable: Iterable[T], n: int) -> Iterator[list[T]]:
    """Yield lists of n items in turn, the last one with what is left."""
    window: list[T] = []
    for item in iterable:
        window.append(item)
        if len(window) == n:
            yield window
            window = []
    if window:
        yield window


def num_label_tokens(batches: Iterable[Batch]) -> int:
    """Count the tokens that have a loss."""
    return sum(int((batch["labels"] != CROSS_ENTROPY_IGNORE_IDX).sum()) for batch in batches)


def num_real_tokens(batches: Iterable[Batch], pad_id: int) -> int:
    """Count the tokens without padding."""
    return sum(sum(sample_lens(batch, pad_id)) for batch in batches)


def sample_lens(batch: Batch, pad_id: int) -> list[int]:
    """Return the tokens of each sample of a batch, padding left out.

    Where a collate of the user's own notes no lengths, padding is each `pad_id`, even one that ends a sample.
    """
    if "seq_lens" in batch:
        return batch["seq_lens"]
    return (batch["lengths"] if "lengths" in batch else (batch["tokens"] != pad_id).sum(1)).tolist()
