"""Answers given so far, in a file: an evaluation that was killed goes on after them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchtune_lite.errors import SaveError


class KeptAnswers:
    """The answers to prompts, a line each, after a first line that says what gave them.

    A file that something else has given is begun anew, and so is an answer to another prompt. What is torn off by a
    kill is left out.
    """

    def __init__(self, path: Path, made_by: str) -> None:
        self.path = path
        head = {"made_by": made_by}
        kept = [json.dumps(head)]
        self._answers: dict[tuple[int, str], str] = {}
        for row in _lines(path, head):
            self._answers[row["row"], row["prompt"]] = row["answer"]
            kept.append(json.dumps(row, ensure_ascii=False))
        try:
            draft = path.with_name(f".tmp-{path.name}")
            draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            draft.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise SaveError(f"{path} was not written: {error.strerror or error}") from error

    def find(self, row: int, tokens: Sequence[int]) -> str | None:
        """Return the answer of a row to a prompt of these tokens, if there is one."""
        return self._answers.get((row, _digest(tokens)))

    def add(self, row: int, tokens: Sequence[int], answer: str) -> None:
        """Keep an answer."""
        line = {"row": row, "prompt": _digest(tokens), "answer": answer}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise SaveError(f"{self.path} was not written: {error.strerror or error}") from error

    def remove(self) -> None:
        """Delete the file, whose answers are elsewhere now."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _lines(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[Any] = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return [row for row in rows[1:] if row.keys() >= {"row", "prompt", "answer"}] if rows[:1] == [head] else []


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


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
    return _digest([settings, files])


def _paths(value: Any) -> list[str]:
    """Return the texts in settings that name a file or folder which is there."""
    if isinstance(value, Mapping):
        return [path for each in value.values() for path in _paths(each)]
    if isinstance(value, list | tuple):
        return [path for each in value for path in _paths(each)]
    path = os.path.expanduser(value) if isinstance(value, str) else ""
    return [path] if os.path.exists(path) else []
