"""Each operation of three saves in turn fails, or is the last one of the process."""

import errno
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.checkpoint.little_run import check, check_next_run, run
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.checkpoint.store import publishing as store
from torchtune_lite.checkpoint.store.manifest import write_manifest
from torchtune_lite.errors import ConfigError, SaveError

OPERATIONS = [name for name, _ in inspect.getmembers(disk, inspect.isfunction) if name[0] != "_"]


class Stop:
    """Counter of operations that calls `fault` at number `at`, with half of a write or removal done."""

    def __init__(self, at: int = -1, fault: Callable[[], None] = lambda: None) -> None:
        self.at, self.fault, self.count = at, fault, -1

    def is_here(self) -> bool:
        self.count += 1
        return self.count == self.at

    def wrap(self, name: str, function: Callable) -> Callable:
        def call(*args):
            if self.is_here():
                if name != "remove":
                    self.fault()
                elif args[0].exists():  # gets only so far, which is no error
                    next(path for path in args[0].rglob("*") if path.is_file()).unlink(missing_ok=True)
                    with suppress(OSError):
                        self.fault()
                return None
            if name in ("sync_file", "sync_folder"):  # of no effect on a process that is killed, and slow
                return None
            result = function(*args)
            return File(result, self) if name in ("create", "update") else result

        return call


class File:
    """A file whose every write is an operation."""

    def __init__(self, file, stop: Stop) -> None:
        self._file, self._stop = file, stop

    def write(self, content: bytes) -> int:
        if self._stop.is_here():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            self._stop.fault()
        return self._file.write(content)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


@contextmanager
def stopping(stop: Stop) -> Iterator[Stop]:
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(disk, name, stop.wrap(name, getattr(disk, name)))
        yield stop


def num_operations(folder: Path) -> int:
    with stopping(Stop()) as stop:
        run(folder)
    return stop.count + 1


def fails(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def run_and_fail(folder: Path, at: int, number: int) -> list[int]:
    saved: list[int] = []
    with stopping(Stop(at, fails(number))), suppress(SaveError, ConfigError):
        run(folder, saved=saved.append)
    return saved


def run_and_die(folder: Path, at: int) -> list[int]:
    """Save in a process of its own; a pipe reports the checkpoints that it called saved."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with stopping(Stop(at, lambda: os._exit(137))):
                run(folder, saved=lambda step: os.write(write, bytes([step])))
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as pipe:
        saved = list(pipe.read())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (137, 1)
    return saved


def sweep(tmp_path: Path, how: Callable[[Path, int], list[int]]) -> None:
    count, seen = num_operations(tmp_path / "whole"), set()
    assert count > 100
    for at in reversed(range(count)):
        folder = tmp_path / str(at)
        saved = how(folder, at)
        seen.add(len(saved))
        check(folder, saved)
        check_next_run(folder)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_an_operation_that_fails_loses_nothing(tmp_path: Path, number: int):
    sweep(tmp_path, lambda folder, at: run_and_fail(folder, at, number))


def test_a_process_that_dies_loses_nothing(tmp_path: Path):
    sweep(tmp_path, run_and_die)


@contextmanager
def publish_in_place(folder: Path, **options) -> Iterator[Path]:
    """An unsafe `publish`, which writes where readers look."""
    disk.make_folder(folder)
    yield folder
    write_manifest(folder, run_id=None, step=None)


@pytest.mark.parametrize("mistake", ["removes in place", "writes in place"])
def test_the_sweep_finds_a_store_that_is_not_safe(tmp_path: Path, monkeypatch, mistake: str):
    if mistake == "removes in place":
        monkeypatch.setattr(store, "_remove", lambda folder: disk.remove(folder))
    else:
        monkeypatch.setattr("tests.checkpoint.little_run.publish", publish_in_place)
    with pytest.raises(Exception):  # noqa: B017, an assertion or a CheckpointError
        sweep(tmp_path, run_and_die)


def test_the_sweep_finds_a_save_that_was_said_too_early(tmp_path: Path):
    saved = run_and_die(tmp_path, num_operations(tmp_path / "count") // 2)
    check(tmp_path, saved)
    with pytest.raises(AssertionError, match="were saved"):
        check(tmp_path, [*saved, 11])
