"""The bytes of a file, read where they are asked for, by any process or thread."""

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import IO, Any

from torchtune_lite.errors import DataError
from torchtune_lite.utils import get_logger

log = get_logger()

MOST_OPEN = 64  # files at a time, however many there are


class ByteFile:
    """A file of `size` bytes; one that ends in .gz is unpacked, into a file without a name that ends with the process.

    Reads share no position, so that they survive a fork; a process that it is sent to unpacks the file again. Raises
    DataError for what can't be read, is not a complete gzip file, or is another file by the time it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._unpacked = _unpack(self.path) if path.suffix == ".gz" else None
        try:
            self._stat = os.fstat(self._unpacked.fileno()) if self._unpacked else os.stat(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or error}") from None
        self.size = self._stat.st_size

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_unpacked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unpacked = _unpack(self.path) if self.path.endswith(".gz") else None

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Read the bytes from `start` to `stop`, or to the end."""
        stop = self.size if stop is None else min(stop, self.size)
        file = self._unpacked or _opened(self.path, _identity(self._stat))
        parts = []
        while start < stop:
            part = os.pread(file.fileno(), stop - start, start)  # at most 2 GiB a call
            if not part:
                raise DataError(f"{self.path} was shortened while it was being read; start the run again")
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self, size: int = 2**24, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop`, or to the end, in turn."""
        stop = self.size if stop is None else stop
        for at in range(start, stop, size):
            yield self.read(at, min(at + size, stop))

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, which end with a newline character and nothing else."""
        begun: list[bytes] = []  # of a line that goes on in the next chunk; joined once, however long it is
        for chunk in self.chunks(2**20):
            *ended, rest = chunk.split(b"\n")
            if ended:
                yield b"".join([*begun, ended[0], b"\n"])
                yield from (line + b"\n" for line in ended[1:])
                begun = []
            begun.append(rest)
        if last := b"".join(begun):
            yield last


def stream_bytes(path: Path, size: int = 2**20) -> Iterator[bytes]:
    """Yield the bytes of a file from its start, unpacked if it ends in .gz, `size` at a time; nothing is kept."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while part := file.read(size):
                yield part
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _no_gzip(path, error) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


@lru_cache(maxsize=MOST_OPEN)
def _opened(path: str, identity: tuple[int, ...]) -> FileIO:
    """Open a file, which is closed when enough others have been opened since."""
    try:
        file = FileIO(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if _identity(os.fstat(file.fileno())) != identity:
        raise DataError(f"{path} was changed while it was being read; start the run again")
    return file


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _unpack(path: str) -> IO[bytes]:
    folder = tempfile.gettempdir()
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as its reader)
    try:
        with gzip.open(path) as packed:
            while part := packed.read(2**20):
                file.write(part)
        file.flush()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _no_gzip(path, error) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be unpacked into {folder} ({error.strerror or error}); TMPDIR names another folder"
        ) from None
    log.info(
        f"{path}: unpacked into {file.tell() / 1e6:,.1f} MB of {folder} until the run ends; TMPDIR names another folder"
    )
    return file


def _no_gzip(path: Path | str, error: Exception) -> DataError:
    return DataError(f"{path} is not a complete gzip file ({error}); fetch or pack it again")
