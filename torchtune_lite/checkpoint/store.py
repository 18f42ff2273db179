"""The one place that publishes a checkpoint folder: a reader sees it whole or not at all."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torchtune_lite.errors import SaveError

_NAME = re.compile(r"(epoch|step)_\d+")


@contextmanager
def publish(folder: Path | str) -> Iterator[Path]:
    """Gives an empty folder to write into, and at the end syncs it to the disk and renames it to `folder`.

    Nothing is left when the writing fails. SaveError for what the file system refuses, and for a `folder` that
    exists: a published checkpoint is never overwritten.
    """
    folder = Path(folder)
    if folder.exists():
        raise SaveError(f"{folder} exists and is not overwritten; choose another output_dir, or move it away")
    draft = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a process that had the same id
        draft.mkdir(parents=True)
        yield draft
        for path in [*draft.rglob("*"), draft]:
            _sync(path)
        draft.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise SaveError(f"{folder} was not saved: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reserve(file: BinaryIO, size: int) -> None:
    """Takes the disk's space for the first `size` bytes of `file`, which grows to them; OSError where it is not free.

    Does nothing where the system or the file system cannot.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # not Linux
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def published(output_dir: Path | str) -> list[Path]:
    """Lists the checkpoint folders `epoch_N` and `step_N` in `output_dir`."""
    return sorted(path for path in Path(output_dir).glob("*_*") if _NAME.fullmatch(path.name) and path.is_dir())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a readable JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
