"""The one logger of the package: plain lines on stderr."""

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from torchtune_lite import errors
from torchtune_lite.errors import ConfigError
from torchtune_lite.redaction import redact

LEVELS = ("DEBUG", "INFO", "WARNING", "WARN", "ERROR")
IN_FILE = "%(asctime)s %(levelname)s %(message)s"


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


class _KeepingHandler(logging.Handler):
    """Keeps the lines for the log of a run, until there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter(IN_FILE))

    def filter(self, record: logging.LogRecord) -> bool:
        return errors.keeps_lines()

    def emit(self, record: logging.LogRecord) -> None:
        errors.keep(self.format(record))


class _FileHandler(logging.FileHandler):
    """Appends to the log of a run, which lacks the lines that a full disk does not take."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="replace")
        self.setFormatter(_Formatter(IN_FILE))
        self.stream.writelines(f"{line}\n" for line in errors.log_to(path))
        self.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


def get_logger(level: str | None = None) -> logging.Logger:
    """Return the package's logger; `level` sets how much it says from here on (None: unchanged, at first INFO).

    It does not pass messages on to the root logger: a library that configures that one would print them twice.
    """
    logger = logging.getLogger("torchtune_lite")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
        logger.addHandler(_KeepingHandler())
        logger.setLevel("INFO")
        logger.propagate = False
    if level is not None:
        if level.upper() not in LEVELS:
            raise ConfigError(f"log_level: {level!r} is not a level; choose one of {', '.join(LEVELS)}")
        logger.setLevel(level.upper())
    return logger


def silence() -> None:
    """Say nothing on stderr any more, as a process that is not the first of several; files have it all."""
    for handler in get_logger().handlers:
        if isinstance(handler, _StderrHandler):
            handler.setLevel("CRITICAL")


class LogFile:
    """A copy, in a file, of what the package says from the start of the command until `close`, and of how it ends.

    Goes on in a file that exists. Where it cannot be written, one warning.
    """

    def __init__(self, path: Path) -> None:
        self._handler: logging.Handler | None = None
        try:
            self._handler = _FileHandler(path)
        except OSError as error:
            get_logger().warning("%s is not written: %s", path, error.strerror or error)
        else:
            get_logger().addHandler(self._handler)

    def close(self) -> None:
        """End the copy; a second call does nothing."""
        if self._handler is not None:
            get_logger().removeHandler(self._handler)
            self._handler.close()
