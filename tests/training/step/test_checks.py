"""A loss or gradient that is not finite never reaches the weights."""

import math

import pytest
import torch

from torchtune_lite.errors import DataError, NonFiniteError
from torchtune_lite.training import Progress, Signals, StopRequested, may_step
from torchtune_lite.training.distributed import World
from torchtune_lite.training.step.checks import Counts, steps

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


class Together(World):
    """Two processes, of which the other one has the numbers `of_other`."""

    size = 2

    def __init__(self, *of_other):
        super().__init__(torch.device("cpu"))
        self.of_other = list(of_other)

    def sum(self, *values):
        return [a + b for a, b in zip(values, self.of_other + [0] * len(values), strict=False)]

    def first(self, error):
        return error or DataError("of the other")


BATCH = {"tokens": torch.tensor([[3, 4, 5, 0]]), "labels": torch.tensor([[4, 5, -100, -100]]), "seq_lens": [3]}


def test_a_step_counts_the_tokens_of_all_processes():
    assert list(steps(iter([[BATCH, BATCH]]), 0, World(torch.device("cpu")), Signals())) == [
        ([BATCH, BATCH], Counts(labels=4, tokens=6, positions=8))
    ]
    [(window, counts), *_] = steps(iter([[BATCH], []]), 0, Together(10, 20, 30), Signals(2))
    assert window == [BATCH] and counts == (12, 23, 34)


def test_an_error_in_making_a_micro_batch_ends_all():
    def windows():
        yield [BATCH]
        raise DataError("a.jsonl:3: bad")

    with pytest.raises(DataError, match="a.jsonl:3"):
        list(steps(windows(), 0, World(torch.device("cpu")), Signals()))
    with pytest.raises(DataError, match="of the other"):
        list(steps(iter([[BATCH]]), 0, Together(0, 0, 0, 1), Signals(2)))


def test_a_signal_to_another_process_stops_this_one_before_the_step():
    taken = []
    with pytest.raises(StopRequested) as request:
        for window, _ in steps(iter([[BATCH]]), 0, Together(0, 0, 0, 0, 0, 0, 1), Signals(2)):
            taken.append(window)
    assert request.value.signum == 15 and not taken
