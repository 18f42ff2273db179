"""Lines that a person types, or that come through a pipe."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchtune_lite.utils.logging import get_logger

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HISTORY_LENGTH = 1000  # lines

log = get_logger()


def visible(text: str) -> str:
    """Return a text with its control characters, line ends and tabs aside, as escapes: they could steer a terminal."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class LineInput:
    """Lines of stdin, edited with readline and kept in the file `history` (None: nowhere) where it is a terminal.

    `interactive` says whether it is one, and stdout too: only then is there a prompt.
    """

    def __init__(self, history: Path | None = None) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._history = history if self.interactive else None
        self._readline = find_readline() if self.interactive else None
        if self._readline and self._history and self._history.is_file():
            self._on_history(self._readline.read_history_file)

    def lines(self, prompt: str) -> Iterator[str]:
        """Yield line after line, without its end, until there is no more; Ctrl-C drops the one being typed."""
        if not self.interactive:
            yield from (line.removesuffix("\n") for line in sys.stdin)
            return
        while True:
            try:
                line = input(prompt)
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /exit leaves)")
                continue
            except EOFError:
                print()
                return
            self._keep()
            yield line

    def _keep(self) -> None:
        if self._readline and self._history:
            self._readline.set_history_length(HISTORY_LENGTH)
            self._on_history(self._write)

    def _write(self, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # what a person asks is nobody else's
        self._readline.write_history_file(path)

    def _on_history(self, act: Callable[[str], object]) -> None:
        try:
            act(str(self._history))
        except OSError as error:
            log.warning("history %s is not kept: %s", self._history, error.strerror or error)
            self._history = None


def find_readline() -> Any:
    """Return the module that edits lines; None where Python has none, as on Windows."""
    try:
        import readline
    except ImportError:
        return None
    return readline
