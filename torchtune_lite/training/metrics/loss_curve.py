"""A run in one picture, drawn from its `metrics.jsonl`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchtune_lite.training.metrics.metrics_file import FILE_NAME, read_metrics
from torchtune_lite.utils import get_logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = tuple[list[int], list[float]]  # steps, values
TRAIN, VALIDATION, QUIET = "#2f6db5", "#d9622b", "#7a7a7a"
BARS = "▁▂▃▄▅▆▇█"
DRAWN = ("loss", "val_loss", "lr", "tokens_per_second")
MOST_POINTS = 2000  # of a curve; the picture is about as many pixels wide


def plot_loss_curve(output_dir: str | Path) -> Path | None:
    """Draw `loss_curve.png` beside `metrics.jsonl`: training and validation loss, learning rate, tokens per second.

    Logs the training loss as a line of bars as well, for those who see only a terminal. Return None, with one log line
    that says why, where there is no loss to draw, matplotlib is not installed or the picture cannot be written.
    """
    folder = Path(output_dir)
    rows = read_metrics(folder / FILE_NAME, DRAWN) if (folder / FILE_NAME).exists() else []
    if not series(rows, "loss")[0]:
        get_logger().info(f"loss curve not drawn: {folder / FILE_NAME} has no loss")
        return None
    losses = series(rows, "loss")[1]
    get_logger().info(f"loss {losses[0]:.3f} {bars(losses)} {losses[-1]:.3f}")
    try:
        figure = draw(rows)
    except ImportError:
        get_logger().info("loss curve not drawn: matplotlib is missing; run `pip install torchtune_lite[plot]`")
        return None
    path = folder / "loss_curve.png"
    try:
        figure.savefig(path, dpi=160)
    except OSError as error:
        get_logger().warning(f"loss curve not drawn: cannot write {path} ({error.strerror or error})")
        return None
    get_logger().info(f"drew {path}")
    return path


def series(rows: list[dict[str, Any]], name: str) -> Series:
    """Return the steps at which a metric was logged and its values, nan where the file says null."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [math.nan if value is None else value for _, value in points]


def smoothed(values: list[float]) -> list[float]:
    """Return the mean over a centred window of a twenty-fifth of the curve, narrower at its ends, without nans."""
    curve = np.array(values)
    finite = ~np.isnan(curve)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, curve, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    at = np.arange(len(curve))
    reach = np.minimum(max(2, len(curve) // 50), np.minimum(at, at[::-1]))
    first, end = at - reach, at + reach + 1
    with np.errstate(invalid="ignore"):  # a window of nans only
        return ((sums[end] - sums[first]) / (counts[end] - counts[first])).tolist()


def thinned(steps: list[int], values: list[float]) -> Series:
    """Return at most `MOST_POINTS` points of a curve, evenly spread, the last one included."""
    every = -(-len(steps) // MOST_POINTS) or 1
    first = (len(steps) - 1) % every
    return steps[first::every], values[first::every]


def bars(values: list[float], width: int = 40) -> str:
    """Return the smoothed curve as at most `width` characters, the highest bar for the largest value."""
    curve = [value for value in smoothed(values) if math.isfinite(value)]
    points = [curve[i * len(curve) // width] for i in range(width)] if len(curve) > width else curve
    low, span = min(points, default=0.0), max(points, default=0.0) - min(points, default=0.0)
    return "".join(BARS[round((value - low) / (span or 1.0) * (len(BARS) - 1))] for value in points)


def draw(rows: list[dict[str, Any]]) -> "Figure":
    """Lay out the figure: the losses above, learning rate and throughput small below, all over optimizer steps."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state, PNG through Agg

    figure = Figure(figsize=(8.4, 6.0), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(2.6, 1))

    losses = figure.add_subplot(grid[0, :])
    steps, values = series(rows, "loss")
    marker = "o" if len(steps) < 10 else None  # a line alone shows nothing of one or two points
    losses.plot(*thinned(steps, values), color=TRAIN, alpha=0.25, linewidth=1.0, marker=marker)
    losses.plot(*thinned(steps, smoothed(values)), color=TRAIN, linewidth=2.0, label="train (smoothed)")
    steps, values = series(rows, "val_loss")
    if steps:
        points = thinned(steps, values)
        losses.plot(*points, color=VALIDATION, linewidth=1.2, marker="o", markersize=5, label="validation")
        losses.annotate(f"{values[-1]:.3f}", (steps[-1], values[-1]), (0, 8), textcoords="offset points", ha="center",
                        color=VALIDATION, fontsize=9)  # fmt: skip
    if _falls_far(rows):
        losses.set_yscale("log")
    losses.legend(frameon=False, loc="upper right")

    _dress(losses, "loss", "{x:g}")
    panels = (("lr", "learning rate", "{x:.1e}"), ("tokens_per_second", "tokens / s", "{x:,.0f}"))
    for column, (name, title, ticks) in enumerate(panels):
        axes = figure.add_subplot(grid[1, column], sharex=losses)
        axes.plot(*thinned(*series(rows, name)), color=QUIET, linewidth=1.3, marker=marker)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("optimizer step")
        _dress(axes, title, ticks)
    return figure


def _falls_far(rows: list[dict[str, Any]]) -> bool:
    """Return whether the loss ends so far below its start that a linear axis would show a flat line at zero."""
    curve = [value for value in smoothed(series(rows, "loss")[1]) if math.isfinite(value)]
    return bool(curve) and 0 < 50 * curve[-1] < curve[0]


def _dress(axes: Any, title: str, ticks: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color="#333333")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", labelsize=9)
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.locator_params(axis="x", integer=True)
    axes.yaxis.set_major_formatter(ticks)
