"""A run's checkpoints: a save that fails, the best one, those that are kept."""

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from torchtune_lite.checkpoint import TrainingState
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import SaveError
from torchtune_lite.training import Checkpoints, Progress

NOTHING = nn.Module(), TrainingState({}, {}, {}, [])


def write(folder: Path, model: nn.Module, state: TrainingState, verify: bool) -> None:
    folder.mkdir(parents=True)


def fail(folder: Path, model: nn.Module, state: TrainingState, verify: bool) -> None:
    raise SaveError(f"{folder} was not saved: No space left on device")


def never(folder: Path, model: nn.Module, state: TrainingState, verify: bool) -> None:
    raise AssertionError(f"{folder} is there already")


def saved(folder: Path) -> list[str]:
    """What is said of a save."""
    return [f"saved {folder}", f"try it: tune chat {folder}"]


def best(output_dir: Path) -> dict:
    return json.loads((output_dir / "best.json").read_text())


def test_saved_is_said_after_it_is_and_the_newest_is_known(tmp_path, log_lines):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.at(0) is None
    checkpoints.save(
        "step_3", Progress(seed=0, global_step=3), lambda folder, **_: log_lines.append(f"writes {folder}"), *NOTHING
    )
    assert log_lines == [f"writes {tmp_path}/step_3", *saved(tmp_path / "step_3")]
    assert checkpoints.at(3) == tmp_path / "step_3" and checkpoints.at(4) is None


def test_one_save_may_fail_but_not_two_in_a_row_nor_the_last(tmp_path, log_lines):
    checkpoints, progress = Checkpoints(tmp_path), Progress(seed=0, global_step=1)
    for name in ("step_1", "step_3"):
        checkpoints.save(name, progress, fail, *NOTHING)
        assert log_lines[-1] == (
            f"{tmp_path}/{name} was not saved: No space left on device; training goes on until the next save"
        )
        assert checkpoints.at(1) is None
        progress.global_step += 1
        checkpoints.save(f"{name}_again", progress, write, *NOTHING)
        progress.global_step = 1
    checkpoints.save("step_5", progress, fail, *NOTHING)
    with pytest.raises(SaveError, match="step_6 was not saved") as caught:
        checkpoints.save("step_6", progress, fail, *NOTHING)
    assert caught.value.exit_code == 5
    with pytest.raises(SaveError):
        Checkpoints(tmp_path).save("epoch_0", progress, fail, *NOTHING, final=True)


def test_the_best_is_that_of_the_lowest_loss_among_those_saved_where_validated(tmp_path):
    checkpoints, progress = Checkpoints(tmp_path), Progress(seed=0)
    expected = {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}
    for step, loss in {1: 3.0, 2: 2.0, 3: None, 4: 2.5, 5: 1.0}.items():
        progress.global_step = step
        if loss is not None:  # step 3 is saved, but not validated
            progress.validated(loss)
        checkpoints.save(f"step_{step}", progress, write, *NOTHING)
        assert best(tmp_path)["checkpoint"] == f"step_{expected[step]}"
    assert best(tmp_path) == {"checkpoint": "step_5", "step": 5, "val_loss": 1.0}


def test_a_loss_that_is_nan_or_a_save_that_failed_is_never_the_best(tmp_path):
    checkpoints, progress = Checkpoints(tmp_path), Progress(seed=0, global_step=1)
    progress.validated(float("nan"))
    checkpoints.save("step_1", progress, write, *NOTHING)
    progress.global_step = 2
    progress.validated(1.0)
    checkpoints.save("step_2", progress, fail, *NOTHING)
    assert not (tmp_path / "best.json").exists()


def test_a_resumed_run_knows_the_best_and_what_it_was_resumed_from(tmp_path):
    progress = Progress(seed=0, global_step=1)
    progress.validated(1.0)
    Checkpoints(tmp_path).save("step_1", progress, write, *NOTHING)
    resumed = Checkpoints(tmp_path, resumed_from=tmp_path / "step_1", resumed_at=1)
    assert resumed.at(1) == tmp_path / "step_1"
    progress.global_step = 2
    progress.validated(2.0)
    resumed.save("step_2", progress, write, *NOTHING)
    assert best(tmp_path)["checkpoint"] == "step_1"
    new = Checkpoints(tmp_path)  # a new run in the folder, whose best.json is of another
    new.save("step_9", progress, write, *NOTHING)
    assert best(tmp_path)["checkpoint"] == "step_9"


@pytest.mark.parametrize("content", ["", "[]", '{"checkpoint": "gone", "val_loss": 1}', '{"checkpoint": "step_1"}'])
def test_a_best_that_cannot_be_read_or_is_gone_is_none(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    (tmp_path / "step_1").mkdir()
    progress = Progress(seed=0, global_step=2)
    progress.validated(5.0)
    Checkpoints(tmp_path, resumed_from=tmp_path / "step_1", resumed_at=1).save("step_2", progress, write, *NOTHING)
    assert best(tmp_path)["checkpoint"] == "step_2"


def test_what_a_stop_has_published_is_not_written_again_but_may_be_the_best(tmp_path):
    """A run stopped while it validated step 2 is resumed, validates, and its save of step 2 is due."""
    (tmp_path / "step_2").mkdir()
    progress = Progress(seed=0, global_step=2)
    progress.validated(1.0)
    Checkpoints(tmp_path, resumed_from=tmp_path / "step_2", resumed_at=2).save("step_2", progress, never, *NOTHING)
    assert best(tmp_path)["checkpoint"] == "step_2"


class Slow:
    """A `write` that waits until it is released, and then keeps its argument."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go, self.error, self.written = threading.Event(), error, {}

    def __call__(self, folder: Path, model: nn.Module, state: TrainingState, verify: bool) -> None:
        assert self.go.wait(60)
        if self.error:
            raise self.error
        self.written = {"weight": model.weight.tolist(), "moment": state.tensors["moment"].read().tolist()}
        folder.mkdir()


def trained() -> tuple[nn.Module, TrainingState]:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, TrainingState({"moment": Weight.of(torch.zeros(2))}, {}, {}, [])


@pytest.mark.parametrize("background", [True, False])
def test_what_is_written_in_the_background_is_the_state_of_the_save(tmp_path, log_lines, background):
    """With the negative control: written late without a copy, it is a later state."""
    model, state = trained()
    checkpoints, slow = Checkpoints(tmp_path, background=background), Slow()
    if not background:
        slow.go.set()
        with torch.no_grad():
            model.weight += 1
    checkpoints.save("step_1", Progress(seed=0, global_step=1), slow, model, state)
    with torch.no_grad():
        model.weight += 1
        state.tensors["moment"].read().add_(1)
    if background:
        checkpoints.poll()
        assert log_lines == [], "nothing is saved yet"
        slow.go.set()
    assert checkpoints.at(1) == tmp_path / "step_1"
    assert log_lines == saved(tmp_path / "step_1")
    assert slow.written == {"weight": [[0.0, 0.0]] if background else [[1.0, 1.0]], "moment": [0.0, 0.0]}


def test_an_error_in_the_background_is_met_at_a_later_step_and_counts(tmp_path, log_lines):
    checkpoints, progress = Checkpoints(tmp_path, background=True), Progress(seed=0, global_step=1)
    first, second = (Slow(SaveError(f"no {number}")) for number in (1, 2))
    checkpoints.save("step_1", progress, first, *trained())
    checkpoints.poll()
    first.go.set()
    checkpoints.poll(wait=True)
    assert log_lines == ["no 1; training goes on until the next save"]
    checkpoints.save("step_2", progress, second, *trained())
    second.go.set()
    with pytest.raises(SaveError, match="no 2"):
        checkpoints.poll(wait=True)


def test_one_save_at_a_time_and_the_final_one_is_waited_for(tmp_path, log_lines):
    checkpoints, slow = Checkpoints(tmp_path, background=True), Slow()
    checkpoints.save("step_1", Progress(seed=0, global_step=1), slow, *trained())
    threading.Timer(0.05, slow.go.set).start()
    checkpoints.save("epoch_0", Progress(seed=0, global_step=2), write, *trained(), final=True)
    assert log_lines == saved(tmp_path / "step_1") + saved(tmp_path / "epoch_0")
    with pytest.raises(SaveError):
        checkpoints.save("epoch_1", Progress(seed=0, global_step=3), fail, *trained(), final=True)


def test_the_end_of_a_run_waits_for_a_save_but_not_one_that_is_interrupted(tmp_path, log_lines):
    checkpoints, slow = Checkpoints(tmp_path, background=True), Slow()
    checkpoints.save("step_1", Progress(seed=0, global_step=1), slow, *trained())
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        checkpoints.close()
    assert log_lines == []
    slow.go.set()
    checkpoints.close()
    assert log_lines == saved(tmp_path / "step_1")


def test_a_save_that_is_interrupted_is_not_called_saved(tmp_path, log_lines):
    def interrupted(folder: Path, model: nn.Module, state: TrainingState, verify: bool) -> None:
        raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save("step_1", Progress(seed=0, global_step=1), interrupted, *NOTHING)
    checkpoints.close()
    assert not [line for line in log_lines if line.startswith("saved")]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("verify", "expected"),
    [("first_and_last", [True, True, False, False, True]), ("all", [True] * 5), (None, [False] * 5)],
)
def test_which_saves_are_verified(tmp_path, background, verify, expected):
    """The first one fails, so that the second is the first to be published; likewise for a resumed run."""
    for resumed_from in (None, tmp_path / "step_0"):
        asked = []

        def write(folder: Path, model: nn.Module, state: TrainingState, verify: bool, asked=asked) -> None:
            asked.append(verify)
            if len(asked) == 1:
                raise SaveError("the first one fails")

        checkpoints = Checkpoints(tmp_path, None, resumed_from, background=background, verify=verify)
        for step in range(1, 6):
            progress = Progress(seed=0, global_step=step)
            checkpoints.save(f"step_{step}", progress, write, *NOTHING, final=step == 5)
        assert asked == expected
