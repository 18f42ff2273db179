"""The cost of steps: tokens, time and memory, for the log and for the run's summary."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.data import Batch, Batches, num_label_tokens, sample_lens
from torchtune_lite.training.memory.usage import peak_memory, reset_peak_memory
from torchtune_lite.training.metrics.flops import peak_flops, step_flops
from torchtune_lite.training.profiler import Profiler
from torchtune_lite.training.step.checks import Counts, count
from torchtune_lite.training.step.losses import Share
from torchtune_lite.utils import counted, get_logger
from torchtune_lite.utils.world import World

COUNTED = ("steps", "seconds", "tokens", "label_tokens", "positions", "flops")


class Meter:
    """Count the tokens, seconds, losses and, if `memory`, the peak memory of the steps since the last `take`.

    The time of a step is that from its `start` to its `stop`: no validation, no saving, no waiting for data. A
    `profiler` is told of each step.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        device: torch.device,
        memory: bool = True,
        profiler: Profiler | None = None,
        world: World | None = None,
    ) -> None:
        self.world = world or World(device)
        self.model, self.batches, self.device = model, batches, device
        self.memory, self.profiler = memory, profiler or Profiler(enabled=False)
        self.peak_flops = peak_flops(device)
        self._total, self._counted = dict.fromkeys(COUNTED, 0.0), dict.fromkeys(COUNTED, 0.0)
        self._first_step, self._peaks, self._since = 0.0, {}, time.perf_counter()
        self._clear()

    def note(self, shares: Iterable[Share]) -> None:
        """Add the shares that data sets have in the loss of a micro-batch."""
        for source, loss, num_tokens in shares:
            self._losses[source] += loss
            self._counts[source] += num_tokens

    def start(self, window: Sequence[Batch], counts: Counts | None = None) -> None:
        """Begin a step of these micro-batches; `counts` are those of all processes, None: of this window."""
        self._window, self._counts_of_step = window, counts or count(window, self.batches.pad_id)
        self._started = time.perf_counter()

    def stop(self) -> float:
        """End the step; return its tokens per second, padding left out."""
        seconds, window = time.perf_counter() - self._started, self._window
        labels, tokens, positions = self._counts_of_step
        lens = (n for batch in window for n in sample_lens(batch, self.batches.pad_id))
        flops = step_flops(self.model, lens, num_label_tokens(window)) if self.peak_flops else 0
        for name, value in zip(COUNTED, (1, seconds, tokens, labels, positions, flops), strict=True):
            self._counted[name] += value
        self._first_step = self._first_step or seconds
        self.profiler.step()
        return tokens / seconds

    def take(self) -> dict[str, float]:
        """Return the metrics of the steps since the last time, by name, and start over.

        `tokens_per_second` leaves padding out, `label_tokens_per_second` counts those in the loss; `padding` is the
        share of positions that are padding, `data_wait` the share of time in which nothing was done but wait for data,
        `mfu` that of the GPU's peak, where it is known. Of several data sets, `loss/NAME` is the mean over the label
        tokens of each. All are of all processes, seconds and FLOPs of this one, and memory of the one that took most.
        """
        row = self._rates(self._counted) | {"data_wait": self.batches.take_wait_share()}
        sums = torch.stack(list(self._losses.values())).tolist() if self._losses else []  # read at once
        shares = {source: (total, self._counts[source]) for source, total in zip(self._losses, sums, strict=True)}
        peaks = peak_memory(self.device) if self.memory else {}
        every_share, every_peak = zip(*self.world.gather((shares, peaks)), strict=True)
        for source in sorted({source for each in every_share for source in each}):
            total, num_tokens = map(sum, zip(*(each[source] for each in every_share if source in each), strict=True))
            if num_tokens:
                row[f"loss/{self.batches.dataset.names[source]}"] = total / num_tokens
        if self.memory:
            reset_peak_memory(self.device)
            peaks = {name: max(each[name] for each in every_peak) for name in peaks}
            self._peaks = {name: max(peak, self._peaks.get(name, 0.0)) for name, peak in peaks.items()}
            row |= peaks
        self._clear()
        return row

    def close(self) -> dict[str, Any]:
        """End the profiler, log a summary of all steps and return it; without a step, nothing."""
        self.profiler.stop()
        self._clear()
        total = self._total
        if not total["steps"]:
            return {}
        summary = {name: round(total[name]) for name in ("steps", "tokens", "label_tokens")}
        summary |= self._rates(total) | self._peaks | {"step_seconds": total["seconds"]}
        summary |= {"first_step_seconds": self._first_step, "seconds": time.perf_counter() - self._since}
        get_logger().info(
            f"{counted(summary['steps'], 'step')}, {counted(summary['tokens'], 'token')} "
            f"({summary['label_tokens']:,} in the loss) in {summary['seconds']:,.1f} s, "
            f"{summary['step_seconds']:,.1f} s of it in steps "
            f"({summary['tokens_per_second']:,.0f} tokens/s), {self._first_step:,.1f} s in the first"
        )
        return {name: round(value, 4) for name, value in summary.items()}

    def _rates(self, counted: dict[str, float]) -> dict[str, float]:
        seconds = counted["seconds"]
        rates = {
            "tokens_per_second": counted["tokens"] / seconds,
            "label_tokens_per_second": counted["label_tokens"] / seconds,
            "padding": 1 - counted["tokens"] / counted["positions"],
        }
        return rates | ({"mfu": counted["flops"] / seconds / self.peak_flops} if self.peak_flops else {})

    def _clear(self) -> None:
        """Reset the numbers of a row, and add them to those of the run."""
        for name, value in self._counted.items():
            self._total[name] += value
        self._counted = dict.fromkeys(COUNTED, 0.0)
        self._losses: dict[int, Tensor | float] = defaultdict(float)  # by data set
        self._counts: dict[int, int] = defaultdict(int)
