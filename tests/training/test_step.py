"""A loss or gradient that is not finite never reaches the weights."""

import math

import pytest
import torch

from torchtune_lite.errors import NonFiniteError
from torchtune_lite.training import Progress, may_step

NAN, INF = float("nan"), float("inf")


def rows() -> str:
    return "train.jsonl:812, train.jsonl:1033"


def test_finite_values_may_step_and_the_rows_are_not_looked_up():
    progress = Progress(seed=0, skipped_in_a_row=2)
    assert may_step(progress, "stop", lambda: 1 / 0, loss=1.5, grad_norm=torch.tensor(0.25))
    assert progress == Progress(seed=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss": NAN}, "loss is nan"),
        ({"grad_norm": torch.tensor(INF)}, "grad_norm is inf"),
        ({"loss": NAN, "grad_norm": -INF}, "loss is nan and grad_norm is -inf"),
    ],
)
def test_stop_names_the_step_what_is_wrong_and_the_rows(values, words):
    with pytest.raises(NonFiniteError) as caught:
        may_step(Progress(seed=0, global_step=56), "stop", rows, **{"loss": 1.0, "lr": 1e-4} | values)
    assert str(caught.value) == (
        f"step 57: {words} (rows: {rows()}); the weights and the last checkpoint are as before it. "
        "Lower optimizer.lr, set clip_grad_norm, or look at these rows"
    )
    assert caught.value.exit_code == 6


def test_skip_warns_counts_and_stops_at_the_third_in_a_row(log_lines):
    progress = Progress(seed=0, global_step=4)
    outcomes = [may_step(progress, "skip", rows, loss=loss) for loss in (NAN, INF, 1.0, NAN, NAN)]
    assert outcomes == [False, False, True, False, False]
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (4, 2)
    assert len(log_lines) == 4
    assert log_lines[0] == f"step 5: loss is nan (rows: {rows()}); the step is skipped, 1 in all"
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        may_step(progress, "skip", rows, loss=math.nan)


def test_an_overflow_of_fp16_is_skipped_however_often_as_long_as_the_scale_can_fall(log_lines):
    progress = Progress(seed=0, scaler={"scale": 64.0})
    outcomes = []
    for scale in (64.0, 8.0, 4.0, 2.0, 1.0):
        progress.scaler = {"scale": scale}
        outcomes.append(may_step(progress, "stop", rows, loss=1.0, grad_norm=INF))
    assert outcomes == [False] * 5 and (progress.skipped_steps, progress.skipped_in_a_row) == (5, 0)
    assert log_lines[1].endswith("fp16; the step is skipped, 2 in all, and the loss scale is now 8")
    with pytest.raises(NonFiniteError, match="loss is nan and grad_norm is inf"):
        may_step(progress, "stop", rows, loss=NAN, grad_norm=INF)
    progress.scaler = {"scale": 0.5}
    with pytest.raises(NonFiniteError, match="grad_norm is inf"):
        may_step(progress, "stop", rows, loss=1.0, grad_norm=INF)
