"""Kinds of damage to a file of a published checkpoint; each must be named, and another checkpoint resumed from."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torchtune_lite.checkpoint import latest, resume_folder
from torchtune_lite.checkpoint.store.manifest import MANIFEST
from torchtune_lite.errors import CheckpointError


def truncate(size: Callable[[int], int]) -> Callable[[Path, Path], object]:
    return lambda path, other: os.truncate(path, size(path.stat().st_size))


def flip(place: Callable[[int], int]) -> Callable[[Path, Path], None]:
    def change(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place(len(content))] ^= 1
        path.write_bytes(content)

    return change


def zero_a_page(path: Path, other: Path) -> None:
    content = path.read_bytes()
    start = len(content) // 3
    path.write_bytes(content[:start] + bytes(len(content[start : start + 4096])) + content[start + 4096 :])


DAMAGES: dict[str, Callable[[Path, Path], object]] = {  # to a file, given also that of another step
    "nothing left": truncate(lambda size: 0),
    "1 byte left": truncate(lambda size: 1),
    "7 bytes left": truncate(lambda size: 7),
    "8 bytes left": truncate(lambda size: 8),
    "half left": truncate(lambda size: size // 2),
    "last byte gone": truncate(lambda size: size - 1),
    "a byte too many": lambda path, other: path.write_bytes(path.read_bytes() + b"x"),
    "first bit": flip(lambda size: 0),
    "a bit of the header": flip(lambda size: 12),
    "a bit of the body": flip(lambda size: size - 3),
    "a page of zeros": zero_a_page,
    "deleted": lambda path, other: path.unlink(),
    "another step's": lambda path, other: shutil.copyfile(other, path),
    "LFS pointer": lambda path, other: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "web page": lambda path, other: path.write_text("<!DOCTYPE html><html>403</html>"),
}


def files(checkpoint: Path) -> list[str]:
    """List the files of a checkpoint by their paths in it."""
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def sweep(newer: Path, older: Path, file: str) -> int:
    """Apply each damage to one file of the `newer` of two checkpoints and undo it; return their number.

    Raise AssertionError unless the `older` one would be resumed from and the file is named.
    """
    path, whole = newer / file, (newer / file).read_bytes()
    count = 0
    for name, damage in DAMAGES.items():
        try:
            damage(path, older / file)
            if not path.exists() or path.read_bytes() != whole:  # what no step changes is another step's as well
                check(newer, older, file, name)
                count += 1
        finally:
            path.write_bytes(whole)
    return count


def check(newer: Path, older: Path, file: str, damage: str) -> None:
    what = f"{file}: {damage}"
    with warnings() as said:
        taken = latest(newer.parent)
    if (file, damage) == (MANIFEST, "last byte gone"):  # the end of its last line: nothing is lost
        assert taken == newer, what
        return
    assert taken == older, what
    assert len(said) == 1 and str(newer) in said[0] and said[0].endswith(f"; resuming from {older} instead"), what

    elsewhere = newer.parent / "new run"
    if (file, damage) == (MANIFEST, "deleted"):  # that is how a user says to do without
        with warnings() as said:
            assert resume_folder(elsewhere, str(newer)) == newer
        assert "cannot be verified" in said[0]
        return
    try:
        resume_folder(elsewhere, str(newer))
    except CheckpointError as error:
        message = str(error)
    else:
        raise AssertionError(f"{what} is not noticed")
    assert newer.name in message and "\n" not in message, what
    assert Path(file).name in message or (file, damage) == (MANIFEST, "another step's"), what


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Return the package's warnings as they come."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("torchtune_lite")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
