"""What a user did that cannot work, said in one line, with the exit code that scripts can test."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TuneError(ValueError):
    """A mistake its reader can mend: the message is one line that names it and says what to do."""

    exit_code = 70


class ConfigError(TuneError):
    """A recipe, config, override or component that cannot be used as given."""

    exit_code = 2


class DataError(TuneError):
    """A data set or tokenizer that cannot be trained on."""

    exit_code = 3


class CheckpointError(TuneError):
    """A checkpoint that cannot be loaded into this model."""

    exit_code = 4


class SaveError(TuneError):
    """A checkpoint that could not be written."""

    exit_code = 5


class NonFiniteError(TuneError):
    """A step whose loss or gradient is nan or infinite."""

    exit_code = 6


class Stopped(Exception):  # noqa: N818 (no error)
    """A run that a signal ended; the message says after which step and how to go on, and is no error."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum  # as a shell reports it: 130 for SIGINT, 143 for SIGTERM


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest of the known names, or nothing when none is near."""
    from difflib import get_close_matches  # not needed by a command that succeeds

    nearest = get_close_matches(str(given), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def warn(message: str) -> None:
    """Prints one line on stderr about something that does not stop the run."""
    print(f"tune: warning: {message}", file=sys.stderr)


@contextmanager
def reporting(debug: bool = False) -> Iterator[None]:
    """Turns a `TuneError`, a stop or Ctrl-C into one line on stderr and an exit code; `debug` keeps the traceback.

    Anything else is a bug of ours and passes through with its traceback.
    """
    try:
        yield
    except TuneError as error:
        if debug:
            raise
        print(f"tune: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped as stop:
        print(f"tune: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        print("tune: interrupted", file=sys.stderr)
        sys.exit(130)
