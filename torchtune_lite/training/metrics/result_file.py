"""The result of an evaluation, in a file that is known to be writable before the first answer."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.errors import ConfigError, SaveError


class ResultFile:
    """A JSON file, whose folder is made. ConfigError where no file can be written there."""

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
        draft = self.path.with_name(f".tmp-{self.path.name}")
        try:
            draft.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            draft.replace(self.path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise SaveError(f"{self.path} was not written: {error.strerror or error}") from error
