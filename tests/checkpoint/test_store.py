import errno
from contextlib import nullcontext
from pathlib import Path

import pytest

from torchtune_lite.checkpoint.store import publish, published, reserve, write_json
from torchtune_lite.errors import SaveError


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


def test_space_is_taken_for_the_whole_file(tmp_path: Path):
    with open(tmp_path / "x", "wb") as file:
        reserve(file, 1_000_000)
    stat = (tmp_path / "x").stat()
    assert stat.st_size == 1_000_000 and stat.st_blocks * 512 >= 1_000_000


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOSPC, None])
def test_a_system_that_cannot_take_space_goes_on_without(tmp_path: Path, monkeypatch, number: int | None):
    def refuse(*args) -> None:
        raise OSError(number, "refused")

    if number is None:
        monkeypatch.delattr("os.posix_fallocate")
    else:
        monkeypatch.setattr("os.posix_fallocate", refuse)
    refusal = pytest.raises(OSError, match="refused") if number == errno.ENOSPC else nullcontext()
    with open(tmp_path / "x", "wb") as file, refusal:
        reserve(file, 1_000_000)
    assert (tmp_path / "x").stat().st_size == 0


def test_a_published_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "epoch_0").mkdir()
    (tmp_path / "epoch_0" / "precious").touch()
    with pytest.raises(SaveError, match="epoch_0 exists and is not overwritten"), publish(tmp_path / "epoch_0"):
        pass
    assert (tmp_path / "epoch_0" / "precious").exists()


def test_published_lists_checkpoint_folders_only(tmp_path: Path):
    for name in ("epoch_0", "step_20", ".tmp-step_30-1", "epoch_final", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_9").touch()
    assert [path.name for path in published(tmp_path)] == ["epoch_0", "step_20"]
    assert published(tmp_path / "absent") == []
