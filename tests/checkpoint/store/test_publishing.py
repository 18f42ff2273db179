import errno
import logging
import os
import resource
import shutil
import stat
from pathlib import Path

import pytest
import torch

from torchtune_lite.checkpoint import claim_output_dir, publish, published, retain, verify
from torchtune_lite.checkpoint.formats.files import write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.errors import CheckpointError, SaveError


def test_a_folder_appears_whole_and_nothing_else_does(tmp_path: Path):
    with publish(tmp_path / "run" / "epoch_0") as draft:
        write_json(draft / "x.json", {"a": 1})
        assert not (tmp_path / "run" / "epoch_0").exists() and published(tmp_path / "run") == []
    assert (tmp_path / "run" / "epoch_0" / "x.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epoch_0"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_stays_of_a_save_that_fails(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), publish(tmp_path / "epoch_0") as draft:
        (draft / "x").touch()
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path):
    with pytest.raises(SaveError, match="epoch_0 was not saved: No space left"), publish(tmp_path / "epoch_0"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_folder_goes_by_its_own_name_while_it_is_written(tmp_path: Path, log_lines):
    with (
        pytest.raises(CheckpointError, match=rf"^{tmp_path}/epoch_0/x: is damaged$") as caught,
        publish(tmp_path / "epoch_0") as draft,
    ):
        logging.getLogger("torchtune_lite").warning("%s/x looks odd, %d%%", draft, 7)
        raise CheckpointError(f"{draft}/x: is damaged")
    assert caught.value.exit_code == 4
    assert log_lines == [f"{tmp_path}/epoch_0/x looks odd, 7%"]
    logging.getLogger("torchtune_lite").warning("%s", draft)
    assert log_lines[1] == str(draft), "later, a name is what it is"


def make(folder: Path, step: int | None = None) -> Path:
    with publish(folder, step=step) as draft:
        (draft / "weights").write_bytes(bytes(1000))
    return folder


def test_a_published_folder_is_never_overwritten(tmp_path: Path):
    make(tmp_path / "epoch_0")
    with pytest.raises(SaveError, match="epoch_0 exists and is not overwritten"), publish(tmp_path / "epoch_0"):
        pass
    verify(tmp_path / "epoch_0")
    (tmp_path / "mine").mkdir()  # no checkpoint's name
    with pytest.raises(SaveError, match="mine exists and is not overwritten"), publish(tmp_path / "mine"):
        pass


def test_a_checkpoint_that_cannot_be_verified_is_moved_aside(tmp_path: Path, caplog):
    (tmp_path / "epoch_0").mkdir()
    (tmp_path / "epoch_0" / "precious").touch()
    make(tmp_path / "epoch_0")
    assert (tmp_path / "epoch_0.unverified-1" / "precious").exists()
    os.truncate(tmp_path / "epoch_0" / "weights", 10)
    make(tmp_path / "epoch_0")
    verify(tmp_path / "epoch_0")
    assert (tmp_path / "epoch_0.unverified-2" / "weights").stat().st_size == 10
    assert caplog.messages[1] == (
        f"{tmp_path}/epoch_0 is written again; the old folder is now epoch_0.unverified-2: {tmp_path}/epoch_0 is "
        "damaged: weights is truncated: 10 bytes, 1,000 were written"
    )
    assert published(tmp_path) == [tmp_path / "epoch_0"]


def test_a_folder_that_may_not_last_does_not_count_as_saved(tmp_path: Path, monkeypatch):
    def refuse(path: Path) -> None:
        if (tmp_path / "epoch_0").exists():
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "sync_folder", refuse)
    with pytest.raises(SaveError, match="not saved: Input/output error"):
        make(tmp_path / "epoch_0")
    assert not list(tmp_path.iterdir())


def test_modes_follow_the_umask(tmp_path: Path):
    old = os.umask(0o027)
    try:
        with publish(tmp_path / "run" / "epoch_0") as draft:
            write_safetensors(draft / "x.safetensors", {"x": Weight.of(torch.zeros(1))})
    finally:
        os.umask(old)
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.rglob("*")}
    assert modes == {"run": "0o750", "epoch_0": "0o750", "x.safetensors": "0o640", "MANIFEST.json": "0o640"}


def test_published_lists_checkpoint_folders_only(tmp_path: Path):
    for name in ("epoch_0", "step_20", ".tmp-step_30-1", "epoch_final", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_9").touch()
    assert [path.name for path in published(tmp_path)] == ["epoch_0", "step_20"]
    assert published(tmp_path / "absent") == []


def test_too_little_space_is_known_before_anything_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 9_100_000)
    refusal = pytest.raises(SaveError, match="epoch_0 was not saved: it needs 13.6 MB, 9.1 MB are free")
    with refusal, publish(tmp_path / "epoch_0", num_bytes=13_600_000):
        pytest.fail("was written to")
    with publish(tmp_path / "epoch_0", num_bytes=9_100_000):
        pass


def fill(output_dir: Path, weight: Weight, num_bytes: int) -> None:
    """Save step_1, which fits, and then step_2, which must not."""
    make(output_dir / "step_1", step=1)
    refusal = pytest.raises(SaveError, match="step_2 was not saved: (No space left|File too large|it needs)")
    with refusal as error, publish(output_dir / "step_2", step=2, num_bytes=num_bytes) as draft:
        write_safetensors(draft / "x.safetensors", {"x": weight})
    assert "\n" not in str(error.value)
    assert [path.name for path in output_dir.iterdir()] == ["step_1"]
    verify(output_dir / "step_1")
    make(output_dir / "step_3", step=3)


UNREAD = Weight(torch.uint8, (2_000_000,), lambda: pytest.fail("was computed, though there is no room for it"))


@pytest.mark.parametrize("num_bytes", [0, 2_000_000], ids=["found by taking the space", "found by asking first"])
def test_a_disk_that_is_really_full(tmp_path: Path, num_bytes: int):
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {tmp_path} 2> /dev/null") != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        fill(tmp_path, UNREAD, num_bytes)
    finally:
        os.system(f"umount {tmp_path}")


def test_a_file_larger_than_the_limit(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        fill(tmp_path, UNREAD, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def names(output_dir: Path) -> set[str]:
    return {path.name for path in output_dir.iterdir() if path.is_dir()}


def test_the_newest_by_number_are_kept(tmp_path: Path):
    with claim_output_dir(tmp_path):
        for name, step in (("step_9", 9), ("step_10", 10), ("step_100", 100), ("epoch_0", 50)):
            make(tmp_path / name, step)
        retain(tmp_path, None)
        assert len(names(tmp_path)) == 4
        retain(tmp_path, 3)
        assert names(tmp_path) == {"step_10", "epoch_0", "step_100"}
        retain(tmp_path, 1, protected=[tmp_path / "step_10", None])
        assert names(tmp_path) == {"step_10", "step_100"}
        retain(tmp_path, 1)
        assert names(tmp_path) == {"step_100"}


def test_what_is_not_this_runs_own_and_whole_is_not_touched(tmp_path: Path):
    with claim_output_dir(tmp_path / "other"):
        other = make(tmp_path / "other" / "step_1", 1)
    with claim_output_dir(tmp_path / "run"):
        shutil.copytree(other, tmp_path / "run" / "step_1")
        (tmp_path / "run" / "step_2").mkdir()  # by hand
        make(tmp_path / "run" / "step_3")  # without a step: no checkpoint of a run
        for step in (4, 5, 6, 7):
            make(tmp_path / "run" / f"step_{step}", step)
        os.truncate(tmp_path / "run" / "step_7" / "weights", 1)  # is none of the two to be kept
        retain(tmp_path / "run", 2)
        assert names(tmp_path / "run") == {f"step_{step}" for step in (1, 2, 3, 5, 6, 7)}


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch, caplog):
    def refuse(path: Path, new: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    for step in (1, 2):
        make(tmp_path / f"step_{step}", step)
    monkeypatch.setattr(disk, "rename", refuse)
    retain(tmp_path, 1)
    assert caplog.messages == [
        f"{tmp_path}/step_1 cannot be removed (keep_last_n_checkpoints) and stays: Permission denied"
    ]
