"""The picture agrees with the file."""

import math
import struct
import sys
from itertools import pairwise

import pytest

from torchtune_lite.training import MetricLoggers, plot_loss_curve
from torchtune_lite.training.metrics import loss_curve
from torchtune_lite.training.metrics.metrics_file import read_metrics

STEPS = list(range(1, 61))


@pytest.fixture
def run(tmp_path):
    """The folder of a run of 60 steps with two validations and one step that went wrong."""
    metrics = MetricLoggers(tmp_path)
    for step in STEPS:
        loss = math.nan if step == 7 else 4 * math.exp(-step / 20)
        metrics.log_dict({"loss": loss, "lr": 1e-4 * step, "tokens_per_second": 100.0 + step}, step)
        if step % 30 == 0:
            metrics.log("val_loss", 0.01 * step, step)
    metrics.close()
    return tmp_path


def test_the_picture_is_a_png(run):
    pytest.importorskip("matplotlib")
    path = plot_loss_curve(str(run))
    assert path == run / "loss_curve.png"
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    assert width > 1000 and height > 700


def test_a_picture_that_cannot_be_written_is_one_warning(run, log_lines):
    pytest.importorskip("matplotlib")
    (run / "loss_curve.png").mkdir()
    assert plot_loss_curve(run) is None
    assert log_lines[-1].startswith(f"loss curve not drawn: cannot write {run / 'loss_curve.png'} (")


def test_every_curve_is_that_of_the_file(run):
    pytest.importorskip("matplotlib")
    losses, lr, speed = loss_curve.draw(read_metrics(run / "metrics.jsonl")).axes
    train, smooth, validation = losses.lines
    assert list(train.get_xdata()) == list(smooth.get_xdata()) == STEPS
    assert [value for value in train.get_ydata() if value == value] == [
        4 * math.exp(-step / 20) for step in STEPS if step != 7
    ]
    assert math.isnan(train.get_ydata()[6]) and not any(math.isnan(value) for value in smooth.get_ydata())
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([30, 60], [0.3, 0.6])
    assert list(lr.lines[0].get_ydata()) == [1e-4 * step for step in STEPS]
    assert list(speed.lines[0].get_ydata()) == [100.0 + step for step in STEPS]
    assert [axes.get_title(loc="left") for axes in (losses, lr, speed)] == ["loss", "learning rate", "tokens / s"]


def test_a_long_curve_is_drawn_with_as_many_points_as_can_be_seen(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(loss_curve, "MOST_POINTS", 100)
    metrics = {"loss": 1.0, "val_loss": 2.0, "lr": 0.1, "tokens_per_second": 5.0}
    for count in (1, 99, 100, 101, 1999):
        figure = loss_curve.draw([{"step": step, **metrics} for step in range(1, count + 1)])
        for line in (line for axes in figure.axes for line in axes.lines):
            steps = list(line.get_xdata())
            assert min(count, 50) <= len(steps) <= min(count, 100) and steps[-1] == count
            assert len({after - before for before, after in pairwise(steps)}) <= 1


def test_a_run_without_validation_has_no_validation_curve(tmp_path):
    pytest.importorskip("matplotlib")
    figure = loss_curve.draw([{"step": 1, "loss": 1.0}])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["train (smoothed)"]


@pytest.mark.parametrize(("end", "scale"), [(1.0, "linear"), (0.01, "log"), (0.0, "linear")])
def test_a_loss_that_falls_by_orders_of_magnitude_has_a_log_axis(end, scale):
    pytest.importorskip("matplotlib")
    figure = loss_curve.draw([{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": end}])
    assert figure.axes[0].get_yscale() == scale


def test_smoothing_keeps_a_straight_line_and_calms_a_noisy_one():
    line = [float(step) for step in range(100)]
    assert loss_curve.smoothed(line) == pytest.approx(line)
    noisy = loss_curve.smoothed([(-1.0) ** step for step in range(200)])
    assert max(abs(value) for value in noisy[5:-5]) < 0.25


def test_smoothing_passes_over_nans():
    assert loss_curve.smoothed([2.0, math.nan, 2.0, 2.0, 2.0]) == pytest.approx([2.0] * 5)
    assert all(math.isnan(value) for value in loss_curve.smoothed([math.nan] * 3))


def test_no_loss_draws_nothing_and_says_so(tmp_path, capsys):
    assert plot_loss_curve(tmp_path) is None
    MetricLoggers(tmp_path).log("val_loss", 1.0, 1)
    assert plot_loss_curve(tmp_path) is None
    assert capsys.readouterr().err.count("has no loss") == 2
    assert not (tmp_path / "loss_curve.png").exists()


def test_a_missing_matplotlib_names_the_extra(run, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_loss_curve(run) is None
    assert "torchtune_lite[plot]" in capsys.readouterr().err


def test_bars_fall_with_the_loss_and_fit_a_terminal():
    falling = loss_curve.bars([1 / step for step in range(1, 400)])
    assert len(falling) == 40
    assert falling[0] == "█" and falling[-1] == "▁"
    assert list(falling) == sorted(falling, reverse=True)
    assert loss_curve.bars([2.0, math.nan, 2.0]) == "▁▁▁"
    assert loss_curve.bars([math.nan]) == ""
