"""What steps cost: tokens, time and memory, for the log."""

import time
from collections.abc import Sequence

import torch

from torchtune_lite.data import Batch, Batches, num_label_tokens, num_real_tokens
from torchtune_lite.training.memory import peak_memory, reset_peak_memory


class Meter:
    """Counts the tokens, seconds and, if `memory`, the peak memory of the steps since the last `take`.

    The time of a step is that from its `start` to its `stop`: no validation, no saving, no waiting for data.
    """

    def __init__(self, batches: Batches, device: torch.device, *, memory: bool = True) -> None:
        self.batches, self.device, self.memory = batches, device, memory
        self._clear()

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
        """
        row = {
            "tokens_per_second": self._tokens / self._seconds,
            "label_tokens_per_second": self._labels / self._seconds,
            "padding": 1 - self._tokens / self._positions,
            "data_wait": self.batches.take_wait_share(),
        }
        if self.memory:
            row |= peak_memory(self.device)
            reset_peak_memory(self.device)
        self._clear()
        return row

    def _clear(self) -> None:
        self._tokens = self._labels = self._positions = 0
        self._seconds = 0.0
