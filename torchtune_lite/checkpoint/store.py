"""The one place that publishes a checkpoint folder: a reader sees it whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def published(output_dir: Path | str) -> list[Path]:
    """Lists the checkpoint folders `epoch_N` and `step_N` in `output_dir`."""
    return sorted(path for path in Path(output_dir).glob("*_*") if _NAME.fullmatch(path.name) and path.is_dir())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a readable JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
