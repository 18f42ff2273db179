"""The result of an evaluation, in a file that is known to be writable before the first answer."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.errors import ConfigError, SaveError


class ResultFile:
    """A JSON file, or one of lines, whose folder is made. ConfigError where no file can be written there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.parent.exists() and not path.parent.is_dir():
                raise NotADirectoryError("it is a file")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
            if path.is_dir():
                raise IsADirectoryError(f"{path.name} in it is a folder")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"output_dir {path.parent} cannot be used: {reason}; choose another folder") from error

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the file, whole or not at all; SaveError where that fails."""
        self._replace(_json(content, indent=1) + "\n")

    def write_lines(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file by one of a line for each row, whole or not at all; SaveError where that fails."""
        self._replace("".join(f"{_json(row)}\n" for row in rows))

    def _replace(self, text: str) -> None:
        draft = self.path.with_name(f".tmp-{self.path.name}")
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise SaveError(f"{self.path} was not written: {error.strerror or error}") from error


def _json(content: Mapping[str, Any], **options: Any) -> str:
    return json.dumps(content, ensure_ascii=False, default=_plain, **options)


def _plain(value: Any) -> Any:
    """Return a NumPy number's value, and of anything else that JSON has no form for, what it prints."""
    return value.item() if hasattr(value, "item") else str(value)
