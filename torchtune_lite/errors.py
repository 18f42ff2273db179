"""What a user did that cannot work, said in one line, with the exit code that scripts can test."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ALLOCATOR = "DefaultCPUAllocator"
"""Says which RuntimeError of torch is for want of the host's memory; the GPU's are an OutOfMemoryError."""


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


class OutOfMemoryError(TuneError):
    """A step, or the model itself, that the device or the host has no room for."""

    exit_code = 7


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

    Running out of memory is such an error too. Anything else is a bug of ours and passes through with its traceback.
    """
    try:
        with _knowing_memory_errors():
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


@contextmanager
def _knowing_memory_errors() -> Iterator[None]:
    """Raises `OutOfMemoryError` for what Python and torch raise, which is known by name: this file imports no torch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        kind = type(error).__name__
        if not (isinstance(error, MemoryError) or kind == "OutOfMemoryError" or ALLOCATOR in text):
            raise
        detail = ". ".join(text.rpartition(f"{ALLOCATOR}: ")[2].split(". ")[:3]) or "no more on the host"
        raise OutOfMemoryError(
            f"out of memory ({detail}); lower batch_size and raise gradient_accumulation_steps by as much, set "
            "enable_activation_checkpointing: True, or lower tokenizer.max_seq_len"
        ) from error
