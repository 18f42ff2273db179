"""A file of answers that a run which was stopped goes on with."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.errors import ConfigError, SaveError
from torchtune_lite.utils import lock_file

Result = dict[str, Any]
"""What became of a row: its number `row`, and the answer to it or its problem."""

START = b'{"row": '


class AnswerFile:
    """A file of results, a JSON line each, which one process writes at a time; `made_by` tells what gives them.

    What stands there of a run that was stopped stays, but for a line that it left unfinished. ConfigError for a file
    that holds anything else, which with `anew` is emptied instead; for one that cannot be written, or is by another
    process. Where the file system has no locks, nothing tells of the latter.
    """

    def __init__(self, path: Path, made_by: str, *, anew: bool = False) -> None:
        self.path, self.made_by = path, made_by
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise FileExistsError("it does not keep what is written")
            self._file = path.open("a+b")
            lock_file(self._file)
            self._file.truncate(self._end(anew))
        except BlockingIOError:
            raise ConfigError(f"{path} is being written by another process; wait for it, or choose another") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror or error}; choose another file") from error

    def _end(self, anew: bool) -> int:
        """Return where the last whole result ends; 0 where anything else stands in the file, if it is begun `anew`."""
        self._file.seek(0)
        end = 0
        while (start := self._file.read(len(START))) and START.startswith(start):  # before a line that may have no end
            line = start + self._file.readline()
            if not line.endswith(b"\n"):
                return end
            if not self._is_own(line):
                break
            end += len(line)
        if start and not anew:
            raise ConfigError(
                f"{self.path} holds something else than answers by this model and these settings; choose another file, "
                "or remove it"
            )
        return 0 if start else end

    def _is_own(self, line: bytes) -> bool:
        try:
            return json.loads(line)["made_by"] == self.made_by
        except (ValueError, KeyError):
            return False

    def results(self) -> Iterator[Result]:
        """Yield the results that stand there."""
        self._file.seek(0)
        yield from map(json.loads, self._file)

    def write(self, result: Result) -> None:
        """Add a result, `row` first; SaveError where that fails."""
        try:
            self._file.write(as_json({**result, "made_by": self.made_by}) + b"\n")
            self._file.flush()
        except OSError as error:
            raise SaveError(
                f"{self.path} was not written: {error.strerror or error}; make room, and start again"
            ) from error

    def close(self) -> None:
        """Close the file, for another process to write it."""
        self._file.close()

    def remove(self) -> None:
        """Delete the file, whose answers are elsewhere now."""
        self.path.unlink(missing_ok=True)
        self.close()


def as_json(value: Any) -> bytes:
    """Write a value as it stands in a file of results."""
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def made_by(settings: Mapping[str, Any]) -> str:
    """Return what tells one model and way of answering from another: settings, and the files that paths in them name.

    Of a file its size and time count, of a folder those of the files in it.
    """
    files = []
    for path in map(Path, _paths(settings)):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                state = file.stat()
                files.append((str(file), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(as_json([settings, files])).hexdigest()[:16]


def _paths(value: Any) -> list[str]:
    """Return the texts in settings that name a file or folder which is there."""
    if isinstance(value, Mapping):
        return [path for each in value.values() for path in _paths(each)]
    if isinstance(value, list | tuple):
        return [path for each in value for path in _paths(each)]
    path = os.path.expanduser(value) if isinstance(value, str) else ""
    return [path] if os.path.exists(path) else []
