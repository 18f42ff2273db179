"""The store's calls to the operating system, one small function each: nothing else in it touches the disk.

Call them as `disk.rename(...)`: a test that replaces a function of this module can fail, record or kill at any of them.
"""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from torchtune_lite.utils.file_lock import UNSUPPORTED, lock_file

CHUNK = 1 << 20


def make_folder(path: Path) -> None:
    """Make a new folder in one that exists."""
    path.mkdir()


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; its mode follows the umask."""
    return open(path, "xb")


def update(path: Path) -> BinaryIO:
    """Open a file whose bytes are to be replaced."""
    return open(path, "r+b")


def reserve(file: BinaryIO, size: int) -> None:
    """Take the disk's space for the first `size` bytes of `file`, which grows to them; OSError where it is not free.

    Does nothing where the system or the file system cannot.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # not Linux
        return
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def free_bytes(folder: Path) -> int:
    """Say how many bytes the file system of `folder` has left for this user."""
    return shutil.disk_usage(folder).free


def sync_file(path: Path) -> None:
    """Return when the bytes of a file are on the disk."""
    _sync(path)


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk; does nothing where the file system cannot."""
    if os.name == "nt":  # keeps no folder open
        return
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> tuple[int, str]:
    """Read a file and return its size and the hash of its bytes."""
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.hexdigest()


def rename(path: Path, new: Path) -> None:
    """Return a file or folder another name in the same folder."""
    path.rename(new)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it, as far as the system lets it; one that is not there is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def lock(path: Path) -> BinaryIO | None:
    """Open a file that no other process can lock until this one closes it or ends; None where the system cannot.

    BlockingIOError where another process has it.
    """
    file = open(path, "a+b")  # noqa: SIM115, stays open
    try:
        if lock_file(file):
            return file
    except OSError:
        file.close()
        raise
    file.close()
    return None
