from pathlib import Path

import pytest

from torchtune_lite.utils import file_lock, lock_file


def test_a_lock_ends_with_its_file(tmp_path: Path):
    with (tmp_path / "a").open("ab") as first, (tmp_path / "a").open("ab") as second:
        assert lock_file(first)
        with pytest.raises(BlockingIOError):
            lock_file(second)
        first.close()
        assert lock_file(second)


@pytest.mark.parametrize("code", file_lock.UNSUPPORTED)
def test_a_file_system_without_locks_is_told(code, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(code, "refused")

    monkeypatch.setattr(file_lock.fcntl, "flock", refuse)
    with (tmp_path / "a").open("ab") as file:
        assert not lock_file(file)


def test_a_system_without_locks_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "fcntl", None)
    with (tmp_path / "a").open("ab") as file:
        assert not lock_file(file)
