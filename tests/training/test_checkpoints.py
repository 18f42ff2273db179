"""What a run does with its checkpoints: a save that fails, the best one, those that are kept."""

import json
from pathlib import Path

import pytest

from torchtune_lite.errors import SaveError
from torchtune_lite.training import Checkpoints, Progress


def write(folder: Path) -> None:
    folder.mkdir(parents=True)


def fail(folder: Path) -> None:
    raise SaveError(f"{folder} was not saved: No space left on device")


def never(folder: Path) -> None:
    raise AssertionError(f"{folder} is there already")


def best(output_dir: Path) -> dict:
    return json.loads((output_dir / "best.json").read_text())


def test_saved_is_said_after_it_is_and_the_newest_is_known(tmp_path, log_lines):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.at(0) is None
    checkpoints.save("step_3", Progress(seed=0, global_step=3), lambda folder: log_lines.append(f"writes {folder}"))
    assert log_lines == [f"writes {tmp_path}/step_3", f"saved {tmp_path}/step_3"]
    assert checkpoints.at(3) == tmp_path / "step_3" and checkpoints.at(4) is None


def test_one_save_may_fail_but_not_two_in_a_row_nor_the_last(tmp_path, log_lines):
    checkpoints, progress = Checkpoints(tmp_path), Progress(seed=0, global_step=1)
    for name in ("step_1", "step_3"):
        checkpoints.save(name, progress, fail)
        assert log_lines[-1] == (
            f"{tmp_path}/{name} was not saved: No space left on device; training goes on, and the next save is tried"
        )
        assert checkpoints.at(1) is None
        progress.global_step += 1
        checkpoints.save(f"{name}_again", progress, write)
        progress.global_step = 1
    checkpoints.save("step_5", progress, fail)
    with pytest.raises(SaveError, match="step_6 was not saved") as caught:
        checkpoints.save("step_6", progress, fail)
    assert caught.value.exit_code == 5
    with pytest.raises(SaveError):
        Checkpoints(tmp_path).save("epoch_0", progress, fail, final=True)


def test_the_best_is_that_of_the_lowest_loss_among_those_saved_where_validated(tmp_path):
    checkpoints, progress = Checkpoints(tmp_path), Progress(seed=0)
    expected = {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}
    for step, loss in {1: 3.0, 2: 2.0, 3: None, 4: 2.5, 5: 1.0}.items():
        progress.global_step = step
        if loss is not None:  # step 3 is saved, but not validated
            progress.validated(loss)
        checkpoints.save(f"step_{step}", progress, write)
        assert best(tmp_path)["checkpoint"] == f"step_{expected[step]}"
    assert best(tmp_path) == {"checkpoint": "step_5", "step": 5, "val_loss": 1.0}


def test_a_loss_that_is_nan_or_a_save_that_failed_is_never_the_best(tmp_path):
    checkpoints, progress = Checkpoints(tmp_path), Progress(seed=0, global_step=1)
    progress.validated(float("nan"))
    checkpoints.save("step_1", progress, write)
    progress.global_step = 2
    progress.validated(1.0)
    checkpoints.save("step_2", progress, fail)
    assert not (tmp_path / "best.json").exists()


def test_a_resumed_run_knows_the_best_and_what_it_was_resumed_from(tmp_path):
    progress = Progress(seed=0, global_step=1)
    progress.validated(1.0)
    Checkpoints(tmp_path).save("step_1", progress, write)
    resumed = Checkpoints(tmp_path, resumed_from=tmp_path / "step_1", resumed_at=1)
    assert resumed.at(1) == tmp_path / "step_1"
    progress.global_step = 2
    progress.validated(2.0)
    resumed.save("step_2", progress, write)
    assert best(tmp_path)["checkpoint"] == "step_1"
    new = Checkpoints(tmp_path)  # a new run in the folder, whose best.json is of another
    new.save("step_9", progress, write)
    assert best(tmp_path)["checkpoint"] == "step_9"


@pytest.mark.parametrize("content", ["", "[]", '{"checkpoint": "gone", "val_loss": 1}', '{"checkpoint": "step_1"}'])
def test_a_best_that_cannot_be_read_or_is_gone_is_none(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    write(tmp_path / "step_1")
    progress = Progress(seed=0, global_step=2)
    progress.validated(5.0)
    Checkpoints(tmp_path, resumed_from=tmp_path / "step_1", resumed_at=1).save("step_2", progress, write)
    assert best(tmp_path)["checkpoint"] == "step_2"


def test_what_a_stop_has_published_is_not_written_again_but_may_be_the_best(tmp_path):
    """A run stopped while it validated step 2 is resumed, validates, and its save of step 2 is due."""
    write(tmp_path / "step_2")
    progress = Progress(seed=0, global_step=2)
    progress.validated(1.0)
    Checkpoints(tmp_path, resumed_from=tmp_path / "step_2", resumed_at=2).save("step_2", progress, never)
    assert best(tmp_path)["checkpoint"] == "step_2"
