import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.little_run import run
from torchtune_lite.checkpoint import claim, latest, newest, publish, read_best, resume_folder, verify
from torchtune_lite.checkpoint.store.discovery import BEST
from torchtune_lite.errors import CheckpointError, ConfigError


def by_hand(folder: Path, step: int) -> None:
    (folder / "resume").mkdir(parents=True)
    (folder / "resume" / "trainer.json").write_text(json.dumps({"progress": {"global_step": step}}))


def with_manifest(folder: Path, step: int) -> None:
    with publish(folder, step=step) as draft:
        by_hand(draft, step)


@pytest.mark.parametrize("make", [by_hand, with_manifest])
def test_the_newest_checkpoint_is_the_one_with_most_steps(tmp_path: Path, make):
    assert latest(tmp_path) is None
    for name, step in (("step_100", 100), ("epoch_1", 120), ("step_9", 9), (".tmp-step_200-1", 200), ("old_300", 300)):
        make(tmp_path / name, step)
    assert latest(tmp_path) == tmp_path / "epoch_1"


def test_what_cannot_be_resumed_from_is_passed_over(tmp_path: Path, caplog):
    with_manifest(tmp_path / "step_1", 1)
    with publish(tmp_path / "step_2", step=2):
        pass
    by_hand(tmp_path / "step_3", 3)
    assert latest(tmp_path) == tmp_path / "step_1"
    assert caplog.messages == [
        f"{tmp_path}/step_3 has no MANIFEST.json to verify it by (from an older version, or made by hand?); "
        f"resuming from {tmp_path}/step_1 instead",
        f"{tmp_path}/step_2 was saved without resume/; resuming from {tmp_path}/step_1 instead",
    ]


def test_what_cannot_be_verified_is_used_where_nothing_can(tmp_path: Path, caplog):
    for step in (1, 2):
        by_hand(tmp_path / f"step_{step}", step)
    assert latest(tmp_path) == tmp_path / "step_2"
    assert len(caplog.messages) == 1 and "step_2 has no MANIFEST.json, so whether it is whole" in caplog.text


def test_checkpoints_of_which_none_will_do_are_an_error(tmp_path: Path):
    run(tmp_path, [1, 2])
    for step in (1, 2):
        os.truncate(tmp_path / f"step_{step}" / "1.safetensors", 9)
    for resume in (True, "auto"):
        with pytest.raises(CheckpointError, match="no checkpoint in .* can be resumed from: .*step_2.*; .*step_1"):
            resume_folder(tmp_path, resume)


def test_a_run_that_goes_on_before_a_damaged_checkpoint_writes_it_anew(tmp_path: Path):
    run(tmp_path, [1, 2])
    os.truncate(tmp_path / "step_2" / "1.safetensors", 9)
    assert resume_folder(tmp_path, True) == tmp_path / "step_1"
    run(tmp_path, [2, 3])
    verify(tmp_path / "step_2")
    assert latest(tmp_path) == tmp_path / "step_3" and (tmp_path / "step_2.unverified-1").exists()


def test_what_resume_from_checkpoint_means(tmp_path: Path, caplog):
    out = tmp_path / "run"
    assert resume_folder(tmp_path / "new", False) is None
    with caplog.at_level(logging.INFO):
        for resume, level in ((True, "WARNING"), ("auto", "INFO")):
            assert resume_folder(tmp_path / "new", resume) is None
            assert caplog.records[-1].levelname == level
    assert caplog.messages == [f"{tmp_path}/new holds no checkpoint to resume from: a new run starts"] * 2
    with_manifest(out / "epoch_0", 5)
    for resume in (True, "auto", str(out / "epoch_0")):
        assert resume_folder(out, resume) == out / "epoch_0"
    assert resume_folder(tmp_path / "new", str(out / "epoch_0")) == out / "epoch_0"
    with pytest.raises(ConfigError, match="holds another run .epoch_0.*resume_from_checkpoint: True"):
        resume_folder(out, False)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        resume_folder(tmp_path / "new", str(tmp_path))


def test_a_named_checkpoint_must_not_have_later_ones_in_its_way(tmp_path: Path):
    run(tmp_path / "run", [1, 2])
    with pytest.raises(ConfigError, match="is .*step_1, but output_dir .* holds step_2, which would be in the way"):
        resume_folder(tmp_path / "run", str(tmp_path / "run" / "step_1"))
    assert resume_folder(tmp_path / "run", str(tmp_path / "run" / "step_2")) == tmp_path / "run" / "step_2"
    shutil.copytree(tmp_path / "run" / "step_2", tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds step_1, step_2, which would be in the way"):
        resume_folder(tmp_path / "run", str(tmp_path / "elsewhere"))
    with claim(tmp_path / "new"):
        assert resume_folder(tmp_path / "new", str(tmp_path / "elsewhere")) == tmp_path / "elsewhere"


def test_the_newest_whole_checkpoint_is_taken_to_be_used(tmp_path: Path, caplog):
    assert newest(tmp_path) is None
    for step in (1, 2, 30):
        with publish(tmp_path / f"step_{step}", step=step) as draft:
            (draft / "weights").write_bytes(b"12345678")
    (tmp_path / "step_30/weights").write_bytes(b"1234")  # cut off
    assert newest(tmp_path) == tmp_path / "step_2"
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"{tmp_path}/step_30 is damaged: weights is")
    assert caplog.messages[0].endswith("; taking step_2 instead")
    for step in (1, 2):
        (tmp_path / f"step_{step}/weights").unlink()
    with pytest.raises(CheckpointError, match="^no checkpoint in .* is whole: .*step_30 is damaged.*step_1 is damaged"):
        newest(tmp_path)
    by_hand(tmp_path / "step_0", 0)
    assert newest(tmp_path) == tmp_path / "step_0"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checkpoint": "gone", "val_loss": 1}', '{"val_loss": NaN}'])
def test_a_best_checkpoint_that_is_none_is_no_error(tmp_path: Path, content):
    assert read_best(tmp_path) == {}
    (tmp_path / BEST).write_text(content)
    assert read_best(tmp_path) == {}
