"""The one place that publishes and removes checkpoint folders: a reader sees each whole or not at all.

A folder is written as `.tmp-<name>-<pid>`, synced to the disk with its manifest and renamed; it is renamed again,
to `.trash-<name>-<pid>`, before it is removed.
"""

import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from torchtune_lite.checkpoint.store import disk
from torchtune_lite.checkpoint.store.claim import DRAFT, TRASH, make_folders, read_run_id
from torchtune_lite.checkpoint.store.manifest import Manifest, read_manifest, verify, write_manifest
from torchtune_lite.errors import CheckpointError, SaveError, TuneError
from torchtune_lite.utils.world import World

_NAME = re.compile(r"(epoch|step)_\d+")

log = logging.getLogger("torchtune_lite")


@contextmanager
def publish(
    folder: Path | str, *, step: int | None = None, num_bytes: int = 0, world: World | None = None
) -> Iterator[Path]:
    """Return an empty folder to write into, and at the end adds a manifest, syncs it to the disk and renames it.

    `step` is for the manifest; `num_bytes` must be free before anything is written. Nothing is left when the writing
    fails. SaveError for what the file system refuses, and for a `folder` that exists: a published checkpoint is never
    overwritten. One that exists and cannot be verified, as a resumed run finds it, is moved aside. The processes of
    `world` call it together and write into one folder; what it does itself, the first of them does.
    """
    folder, world = Path(folder), world or World()
    draft = folder.with_name(f"{DRAFT}{folder.name}-{world.on_main(os.getpid)}")

    def begin() -> None:
        if folder.exists():
            _move_aside(folder)
        make_folders(folder.parent)
        disk.remove(draft)  # of a process that had the same id
        check_space(folder, num_bytes)
        disk.make_folder(draft)

    def end() -> None:
        write_manifest(draft, run_id=read_run_id(folder.parent), step=step)
        disk.rename(draft, folder)
        try:
            disk.sync_folder(folder.parent)
        except OSError:  # it may be gone after a power loss, so it counts as not saved
            disk.rename(folder, draft)
            raise

    try:
        world.lead(begin)
        with _called(draft.name, folder.name):
            yield draft
        world.lead(end)
    except OSError as error:
        raise SaveError(f"{folder} was not saved: {error.strerror or error}") from error
    finally:
        if world.rank == 0:
            disk.remove(draft)


@contextmanager
def _called(draft: str, name: str) -> Iterator[None]:
    """Let the log and the errors of what is done within call a folder by the name that it is to have."""

    def rename(record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage().replace(draft, name), ()
        return True

    log.addFilter(rename)
    try:
        yield
    except TuneError as error:
        error.args = (str(error).replace(draft, name),)
        raise
    finally:
        log.removeFilter(rename)


def _move_aside(folder: Path) -> None:
    try:
        verify(folder)
    except CheckpointError as error:
        if _NAME.fullmatch(folder.name):
            names = (folder.with_name(f"{folder.name}.unverified-{number}") for number in count(1))
            aside = next(name for name in names if not name.exists())
            disk.rename(folder, aside)
            log.warning("%s is written again; the old folder is now %s: %s", folder, aside.name, error)
            return
    raise SaveError(f"{folder} exists and is not overwritten; choose another output_dir, or move it away")


def check_space(folder: Path, num_bytes: int) -> None:
    """Raise SaveError where less than `num_bytes` are free on the disk that `folder` is to be written to."""
    free = disk.free_bytes(folder.parent)
    if free < num_bytes:
        raise SaveError(
            f"{folder} was not saved: it needs {num_bytes / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; make room, "
            "set keep_last_n_checkpoints, or choose an output_dir on another disk"
        )


def published(output_dir: Path | str) -> list[Path]:
    """List the checkpoint folders `epoch_N` and `step_N` in `output_dir`."""
    return sorted(path for path in Path(output_dir).glob("*_*") if _NAME.fullmatch(path.name) and path.is_dir())


def retain(output_dir: Path | str, keep_last_n: int | None, protected: Collection[Path | str | None] = ()) -> None:
    """Remove the oldest checkpoints of the run that `output_dir` belongs to, until `keep_last_n` are left; None: none.

    Call it after a save. Those count, and are removed, that hold all their bytes (`verify` in the quick way: what was
    just written was just hashed) and whose manifest names this run. `protected` folders stay in any case. What cannot
    be removed is a warning.
    """
    if keep_last_n is None:
        return
    assert keep_last_n >= 1
    kept = {Path(folder).resolve() for folder in protected if folder is not None}
    run_id = read_run_id(output_dir)
    own = {}
    for folder in published(output_dir):
        manifest = _intact(folder)
        if manifest is not None and manifest.run_id == run_id and manifest.step is not None:
            own[folder] = manifest.step
    oldest_first = sorted(own, key=lambda folder: (own[folder], folder.stat().st_mtime_ns))
    for folder in oldest_first[:-keep_last_n]:
        if folder.resolve() not in kept:
            _remove(folder)


def _intact(folder: Path) -> Manifest | None:
    try:
        verify(folder, quick=True)
        return read_manifest(folder)
    except CheckpointError:
        return None


def _remove(folder: Path) -> None:
    """Take a folder out of sight before its first file goes: at no time does it stand there in part."""
    trash = folder.with_name(f"{TRASH}{folder.name}-{os.getpid()}")
    try:
        disk.remove(trash)
        disk.rename(folder, trash)
        disk.sync_folder(folder.parent)
    except OSError as error:
        log.warning("%s cannot be removed (keep_last_n_checkpoints) and stays: %s", folder, error.strerror or error)
    else:
        disk.remove(trash)
