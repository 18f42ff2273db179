import errno
import os
import stat
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest

from torchtune_lite.checkpoint.store import disk
from torchtune_lite.utils import file_lock


def test_space_is_taken_for_the_whole_file(tmp_path: Path):
    with open(tmp_path / "x", "wb") as file:
        disk.reserve(file, 1_000_000)
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
        disk.reserve(file, 1_000_000)
    assert (tmp_path / "x").stat().st_size == 0


def test_a_file_system_that_cannot_sync_folders_goes_on_without(tmp_path: Path, monkeypatch):
    def refuse(number: int):
        def fsync(handle: int) -> None:
            raise OSError(number, "refused")

        monkeypatch.setattr("os.fsync", fsync)

    (tmp_path / "x").touch()
    refuse(errno.EINVAL)
    disk.sync_folder(tmp_path)
    with pytest.raises(OSError, match="refused"):
        disk.sync_file(tmp_path / "x")
    refuse(errno.EIO)
    with pytest.raises(OSError, match="refused"):
        disk.sync_folder(tmp_path)


def test_modes_follow_the_umask_and_nothing_is_overwritten(tmp_path: Path):
    old = os.umask(0o027)
    try:
        disk.make_folder(tmp_path / "folder")
        disk.create(tmp_path / "file").close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "file")


@pytest.mark.parametrize("size", [0, 1, disk.CHUNK, disk.CHUNK + 1])
def test_a_hash_is_of_the_whole_file(tmp_path: Path, size: int):
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert disk.sha256(tmp_path / "x") == (size, sha256(content).hexdigest())


def test_whatever_there_is_is_removed(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    (tmp_path / "file").touch()
    for name in ("a", "file", "absent"):
        disk.remove(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_lock_is_held_once_and_ends_with_its_file(tmp_path: Path):
    first = disk.lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        disk.lock(tmp_path / "lock")
    first.close()
    disk.lock(tmp_path / "lock").close()


def test_a_system_without_locks_gives_none(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(file_lock, "fcntl", None)
    assert disk.lock(tmp_path / "lock") is None
