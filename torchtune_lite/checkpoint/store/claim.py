"""One run at a time in an output_dir: a lock on it, the run's id, and what a killed run has left there."""

import logging
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torchtune_lite.checkpoint.formats.files import read_json, write_json
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.utils import LogFile

LOCK, RUN, LOG = ".lock", "run.json", "run.log"
DRAFT, TRASH = ".tmp-", ".trash-"
"""Names of folders that are being written or removed begin so, and end with the id of the process."""

log = logging.getLogger("torchtune_lite")


class Claim:
    """The right to write to an output_dir, until `release`, the end of a `with`, or the end of the process.

    `run_id` stays the same when the run is resumed.
    """

    def __init__(self, output_dir: Path, run_id: str, lock: BinaryIO | None, log_file: LogFile) -> None:
        self.output_dir, self.run_id = output_dir, run_id
        self._lock, self._log_file = lock, log_file

    def record(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of the run to its `run.json`, beside its id; a full disk costs no more than that.

        Nothing known, as of a start that found nothing left to do, leaves what was written before.
        """
        if not facts:
            return
        try:
            replace_json(self.output_dir / RUN, {"run_id": self.run_id, **facts})
        except OSError as error:
            log.warning("%s was not written: %s", self.output_dir / RUN, error.strerror)

    def release(self) -> None:
        """Let the next run begin; a second call does nothing."""
        self._log_file.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def claim_output_dir(output_dir: Path | str) -> Claim:
    """Make `output_dir` if need be, locks it, removes what killed runs left, reads or draws the run's id, opens a log.

    Keep what is returned: the lock goes with it. ConfigError where another run has the folder, or it cannot be written.
    Where the file system has no locks, one warning; leftovers then stay, since they may be of a run that is alive.
    """
    output_dir = Path(output_dir)
    try:
        make_folders(output_dir)
        lock = _lock(output_dir)
        if lock is not None:
            _remove_leftovers(output_dir)
        return Claim(output_dir, _run_id(output_dir), lock, LogFile(output_dir / LOG))
    except OSError as error:
        raise ConfigError(f"output_dir {output_dir} cannot be used: {error.strerror or error}") from error


def check_output_dir(output_dir: Path | str) -> None:
    """Raise ConfigError where `output_dir` cannot be made or written, or is a model's own folder; writes nothing.

    So a run finds out before it reads the weights; `claim_output_dir` raises the errors that only writing shows.
    """
    output_dir = Path(output_dir)
    nearest = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    problem = ""
    if not nearest.is_dir():
        problem = f"{nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problem = f"{nearest} may not be written to"
    elif (output_dir / "config.json").exists():
        problem = "it holds a model"
    if problem:
        raise ConfigError(f"output_dir {output_dir} cannot be used: {problem}; choose another folder")


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing; they are on the disk when it returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        disk.make_folder(folder)
        disk.sync_folder(folder.parent)


def _lock(output_dir: Path) -> BinaryIO | None:
    path = output_dir / LOCK
    try:
        lock = disk.lock(path)
    except BlockingIOError as error:
        holder = path.read_text() or "unknown"
        raise ConfigError(
            f"another run ({holder}) is using output_dir {output_dir}; wait for it, stop it, or choose another folder"
        ) from error
    if lock is None:
        log.warning("output_dir %s cannot be locked on this file system: do not start a second run in it", output_dir)
        return None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}, host {socket.gethostname()}".encode())
    lock.flush()
    return lock


def _remove_leftovers(output_dir: Path) -> None:
    """Remove drafts and trash; who holds the lock is the only run that could be writing them."""
    for path in [*output_dir.glob(f"{DRAFT}*"), *output_dir.glob(f"{TRASH}*")]:
        disk.remove(path)
        name = path.name.removeprefix(DRAFT).removeprefix(TRASH).rpartition("-")[0]
        log.info("removed the remains of %s, which a killed run left behind", output_dir / name)


def read_run_id(output_dir: Path | str) -> str | None:
    """Read the id of the run that writes to `output_dir`; None where none was ever claimed, or it is damaged."""
    try:
        return str(read_json(Path(output_dir) / RUN)["run_id"])
    except (CheckpointError, KeyError):
        return None


def _run_id(output_dir: Path) -> str:
    if (known := read_run_id(output_dir)) is not None:
        return known
    if (path := output_dir / RUN).exists():
        log.warning("%s is damaged; a new one is made, and earlier checkpoints count as another run's", path)
        disk.remove(path)
    run_id = uuid.uuid4().hex[:12]
    replace_json(path, {"run_id": run_id})
    return run_id


def replace_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file of an output_dir atomically."""
    draft = path.with_name(f"{DRAFT}{path.name}-{os.getpid()}")
    disk.remove(draft)  # of a process that had the same id
    write_json(draft, content)
    disk.sync_file(draft)
    disk.rename(draft, path)
    disk.sync_folder(path.parent)
