"""The one logger of the package: plain lines on stderr."""

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from torchtune_lite.errors import ConfigError, log_tracebacks
from torchtune_lite.redaction import redact

LEVELS = ("DEBUG", "INFO", "WARNING", "WARN", "ERROR")


class _Formatter(logging.Formatter):
    """Writes a line without the secrets in it."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment of the message, above a tqdm progress bar where one is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # not imported: without it there is no bar
        with tqdm.tqdm.external_write_mode(sys.stderr) if tqdm else nullcontext():
            super().emit(record)


def get_logger(level: str | None = None) -> logging.Logger:
    """Returns the package's logger; `level` sets how much it says from here on (None: unchanged, at first INFO).

    It does not pass messages on to the root logger: a library that configures that one would print them twice.
    """
    logger = logging.getLogger("torchtune_lite")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
        logger.setLevel("INFO")
        logger.propagate = False
    if level is not None:
        if level.upper() not in LEVELS:
            raise ConfigError(f"log_level: {level!r} is not a level; choose one of {', '.join(LEVELS)}")
        logger.setLevel(level.upper())
    return logger


class LogFile:
    """A copy, in a file, of what the package logs until `close`, and of the traceback that ends the program.

    Goes on in a file that exists. Where it cannot be written, one warning.
    """

    def __init__(self, path: Path) -> None:
        self._handler: logging.Handler | None = None
        try:
            self._handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
        except OSError as error:
            get_logger().warning("%s is not written: %s", path, error.strerror or error)
            return
        self._handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
        get_logger().addHandler(self._handler)
        log_tracebacks(path)

    def close(self) -> None:
        """Ends the copy; a second call does nothing."""
        if self._handler is not None:
            get_logger().removeHandler(self._handler)
            self._handler.close()
