"""What a user did that cannot work, said in one line, with the exit code that scripts can test."""

import sys
from collections.abc import Iterator
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


@contextmanager
def reporting(debug: bool = False) -> Iterator[None]:
    """Turns a `TuneError` or Ctrl-C into one line on stderr and an exit code; `debug` keeps the traceback.

    Anything else is a bug of ours and passes through with its traceback.
    """
    try:
        yield
    except TuneError as error:
        if debug:
            raise
        print(f"tune: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        print("tune: interrupted", file=sys.stderr)
        sys.exit(130)
