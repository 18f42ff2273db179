"""What steps cost: tokens, time and memory, for the log."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from torchtune_lite.data import CROSS_ENTROPY_IGNORE_IDX, Batch, Batches, num_label_tokens, num_real_tokens
from torchtune_lite.training.memory import peak_memory, reset_peak_memory


class Meter:
    """Counts the tokens, seconds, losses and, if `memory`, the peak memory of the steps since the last `take`.

    The time of a step is that from its `start` to its `stop`: no validation, no saving, no waiting for data.
    """

    def __init__(self, batches: Batches, device: torch.device, *, memory: bool = True) -> None:
        self.batches, self.device, self.memory = batches, device, memory
        self._clear()

    def loss_sum(
        self, loss_fn: Callable[..., Tensor], output: nn.Module, hidden: Tensor, labels: Tensor, batch: Batch
    ) -> Tensor:
        """Sums `loss_fn` over a batch; in training, one of several data sets by data set, whose losses are noted."""
        if "sources" not in batch or not torch.is_grad_enabled():
            return loss_fn(output, hidden, labels)
        total = torch.zeros((), device=hidden.device)
        for source, part in parts(batch):
            loss = loss_fn(output, hidden[part], labels[part])
            total = total + loss
            self._losses[source] += loss.detach()
            self._counts[source] += (labels[part] != CROSS_ENTROPY_IGNORE_IDX).sum()
        return total

    def start(self, window: Sequence[Batch]) -> None:
        """Begins a step of these micro-batches."""
        self._window, self._started = window, time.perf_counter()

    def stop(self) -> float:
        """Ends the step; returns its tokens per second, padding left out."""
        seconds = time.perf_counter() - self._started
        tokens = num_real_tokens(self._window, self.batches.pad_id)
        self._seconds += seconds
        self._tokens += tokens
        self._labels += num_label_tokens(self._window)
        self._positions += sum(batch["tokens"].numel() for batch in self._window)
        return tokens / seconds

    def take(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last time, by name, and starts anew.

        `tokens_per_second` leaves padding out, `label_tokens_per_second` counts those in the loss; `padding` is the
        share of positions that are padding, `data_wait` the share of time in which nothing was done but wait for data.
        Of several data sets, `loss/NAME` is the mean over the label tokens of each.
        """
        row = {
            "tokens_per_second": self._tokens / self._seconds,
            "label_tokens_per_second": self._labels / self._seconds,
            "padding": 1 - self._tokens / self._positions,
            "data_wait": self.batches.take_wait_share(),
        }
        for source, count in sorted(self._counts.items()):
            if count:
                row[f"loss/{self.batches.dataset.names[source]}"] = float(self._losses[source] / count)
        if self.memory:
            row |= peak_memory(self.device)
            reset_peak_memory(self.device)
        self._clear()
        return row

    def _clear(self) -> None:
        self._tokens = self._labels = self._positions = 0
        self._seconds = 0.0
        self._losses: dict[int, Tensor | float] = defaultdict(float)  # by data set
        self._counts: dict[int, Tensor | int] = defaultdict(int)


def parts(batch: Batch) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Yields each data set of a batch and where its samples lie in tensors `[b, s, …]`."""
    rows = batch.get("seq_lens")  # samples of one row, or rows
    start = 0
    for source, each in groupby(range(len(batch["sources"])), key=batch["sources"].__getitem__):
        stop = start + sum(rows[i] if rows else 1 for i in each)
        yield source, (slice(None), slice(start, stop)) if rows else (slice(start, stop),)
        start = stop
