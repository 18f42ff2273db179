"""Checks of every optimizer step."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, SupportsFloat

from torchtune_lite.data import Batch, num_label_tokens, num_real_tokens
from torchtune_lite.errors import NonFiniteError
from torchtune_lite.training.run.progress import Progress
from torchtune_lite.training.signals import Signals
from torchtune_lite.utils import get_logger
from torchtune_lite.utils.world import World

MAX_SKIPPED_IN_A_ROW = 3
"""Skipped steps that end a run: more than a bad row or two are the fault of the run."""


class Counts(NamedTuple):
    """How many tokens a step has: those with a loss, all but padding, and the positions that are computed."""

    labels: int
    tokens: int
    positions: int


def count(window: Sequence[Batch], pad_id: int) -> Counts:
    """Count the tokens of the micro-batches of a step."""
    positions = sum(batch["tokens"].numel() for batch in window)
    return Counts(num_label_tokens(window), num_real_tokens(window, pad_id), positions)


def steps(
    windows: Iterator[list[Batch]], pad_id: int, world: World, signals: Signals
) -> Iterator[tuple[list[Batch], Counts]]:
    """Yield the micro-batches of each step here, and what those of all processes count.

    What ends the run for one process ends it for all, at the start of the same step: a signal to stop, raised as
    StopRequested, or an error in making a micro-batch.
    """
    while True:
        window, error = None, None
        try:
            window = next(windows, None)
        except Exception as problem:
            error = problem
        counts = count(window or (), pad_id)
        sums = world.sum(*counts, error is not None, window is None, *signals.noted())
        labels, tokens, positions, failed, done, *noted = map(int, sums)
        if failed:
            raise world.first(error)
        signals.told(noted)
        if done:
            return
        yield window, Counts(labels, tokens, positions)


def may_step(progress: Progress, on_nonfinite: str, rows: Callable[[], str], **values: SupportsFloat) -> bool:
    """Return whether the optimizer may take the step after `progress.global_step`: all of its `values` are finite.

    If not, `on_nonfinite` decides, before a weight is touched: "stop" raises NonFiniteError with the values and the
    step's `rows`; "skip" warns, counts in `progress` and returns False, and is "stop" at the third in a row. Gradients
    that only the loss scale of fp16 made too large are skipped in either case, as long as it can be lowered.
    """
    wrong = {name: float(value) for name, value in values.items() if not math.isfinite(value)}
    if not wrong:
        progress.skipped_in_a_row = 0
        return True
    progress.skipped_steps += 1
    if progress.scaler and wrong.keys() == {"grad_norm"} and (scale := progress.scaler["scale"]) >= 1:
        get_logger().warning(
            f"step {progress.global_step + 1}: gradients overflowed in fp16; the step is skipped, "
            f"{progress.skipped_steps} in all, and the loss scale is now {scale:g}"
        )
        return False
    shown = " and ".join(f"{name} is {value}" for name, value in wrong.items())
    problem = f"step {progress.global_step + 1}: {shown} (rows: {rows()})"
    progress.skipped_in_a_row += 1
    if on_nonfinite == "skip" and progress.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
        get_logger().warning(f"{problem}; the step is skipped, {progress.skipped_steps} in all")
        return False
    if on_nonfinite == "skip":
        problem += f", {MAX_SKIPPED_IN_A_ROW} steps in a row"
    raise NonFiniteError(
        f"{problem}; the weights and the last checkpoint are as before it. "
        "Lower optimizer.lr, set clip_grad_norm, or look at these rows"
    )
