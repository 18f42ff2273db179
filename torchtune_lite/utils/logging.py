"""The one logger of the package: plain lines on stderr."""

import logging
import sys
from contextlib import nullcontext
from typing import TextIO

from torchtune_lite.errors import ConfigError

LEVELS = ("DEBUG", "INFO", "WARNING", "WARN", "ERROR")


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment of the message, above a tqdm progress bar where one is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))

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
