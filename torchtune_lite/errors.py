"""Errors of a user, each one line, with exit codes that scripts can test."""

import errno
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from torchtune_lite import worker
from torchtune_lite.redaction import redact


class TuneError(ValueError):
    """A mistake that the user can fix: the message is one line that names it and says what to do.

    Of several problems it is a line each, below their number. Line ends and control characters are made visible,
    secrets are blanked, and what is long, a quoted value above all, is cut.
    """

    exit_code = 70

    def __init__(self, *problems: str) -> None:
        lines = [_as_line(problem) for problem in problems]
        super().__init__(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines]))


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
    """A run that a signal ended; the message, which is not an error, names the step and says how to continue."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum  # as a shell reports it: 130 for SIGINT, 143 for SIGTERM


LONGEST_VALUE, LONGEST_LINE = 200, 2000  # characters
_QUOTED = re.compile(r"(?<![\w\\])(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")(?!\w)", re.DOTALL)


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """Cut a text that an error quotes in its middle to about `most` characters, and say how many it has."""
    if len(text) <= most + 50:  # what says so is not much shorter
        return text
    return f"{text[: most * 3 // 4]} … ({len(text):,} characters) … {text[-most // 4 :]}"


def _as_line(text: str) -> str:
    text = redact(text)
    if len(text) > LONGEST_VALUE:
        text = shortened(_QUOTED.sub(lambda found: shortened(found[0]), text), LONGEST_LINE)
    text = " ".join(filter(None, map(str.strip, text.split("\n"))))
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


SYNONYMS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "full": "fp32",
    "gpu": "cuda",
    "none": "null",
}
"""Other usual words for values of a config."""
LONGEST_NAME, MOST_NAMES = 100, 2000


def meant(given: object, known: Iterable[str]) -> str:
    """Return `"; did you mean 'bf16'?"` where what was given is another word for a known value, or nothing."""
    word = SYNONYMS.get(str(given).lower().removeprefix("torch."))
    return f"; did you mean '{word}'?" if word in set(known) else ""


def nearest(given: object, known: Iterable[str]) -> str | None:
    """Return the nearest of the known names, or None when none is near.

    Of `MOST_NAMES` at most; names beyond `LONGEST_NAME` are passed over, as each character is compared with each.
    """
    from difflib import get_close_matches  # not needed by a command that succeeds

    names = [name for name in islice(known, MOST_NAMES) if len(name) <= LONGEST_NAME]
    found = get_close_matches(str(given), names, n=1, cutoff=0.6) if len(str(given)) <= LONGEST_NAME else []
    return found[0] if found else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest of the known names, or nothing when none is near."""
    found = nearest(given, known)
    return f"; did you mean '{found}'?" if found else ""


def warn(message: str) -> None:
    """Print one line on stderr about something that does not stop the run."""
    say(f"warning: {message}")


def say(message: str) -> None:
    """Print a line of `tune` on stderr, its secrets blanked."""
    line = f"tune: {redact(message)}"
    print(line, file=sys.stderr)
    if not _write_log(f"{line}\n"):
        keep(line)


USERS_CODE, OUT_OF_MEMORY, BUG = 1, 7, 70
PORTING = (
    "a torchtune script has to be rewritten from a copy of a recipe here ('tune cp lora_finetune_single_device "
    "my_recipe.py'), while its YAML runs as it is; see docs/coming_from_torchtune.md"
)
CLOSED_PIPE = 141  # as a shell reports the end by SIGPIPE

_log: Path | None = None  # of the run, once there is one
_said: list[str] | None = None  # what `reporting` has heard before that


def keeps_lines() -> bool:
    """Return whether `keep` does: within `reporting`, as long as there is no log."""
    return _said is not None


def keep(line: str) -> None:
    """Keep a line that was said for the log that the program may come to have."""
    if keeps_lines():
        _said.append(line)


def log_to(path: Path) -> list[str]:
    """Have what `say` says, and the traceback of what ends the program, written to this file too.

    Returns the lines that were said before, which it does not write.
    """
    global _log, _said
    before, _log, _said = _said or [], path, None
    return before


@contextmanager
def reporting(debug: bool = False) -> Iterator[None]:
    """Turn whatever ends the program into one line on stderr and an exit code; `debug` shows the traceback before it.

    The traceback goes to the log of the run, if it got that far; what is said before that is kept for it. Anything but
    a `TuneError`, a stop, Ctrl-C, too little memory or a pipe that nobody reads is a bug: the user's where it comes
    from a file of theirs, whose traceback is shown; else ours, whose traceback is shown where there is no log.
    """
    global _log, _said
    outer = _log, _said
    _log, _said = None, _said or []
    end: SystemExit | None = None
    try:
        yield
    except SystemExit as exit:
        end = exit
    except (Exception, KeyboardInterrupt) as error:
        try:
            end = SystemExit(_report(error, debug))
        except BrokenPipeError:  # of stderr
            end = SystemExit(CLOSED_PIPE)
    finally:
        _log, _said = outer
    if _drop_closed_pipes():
        end = SystemExit(CLOSED_PIPE)
    if end is not None:
        raise end


def _report(error: BaseException, debug: bool) -> int:
    """Say why the program ends; return the exit code."""
    from traceback import format_exception  # not needed by a command that succeeds

    from torchtune_lite.tracebacks import described, users_place, users_traceback

    if isinstance(error, Stopped):
        return _end(str(error), "", error.exit_code)
    trace = redact("".join(format_exception(error)))
    logged = _write_log(trace)
    if isinstance(error, BrokenPipeError) and _drop_closed_pipes():
        return CLOSED_PIPE
    seen = trace if debug else ""
    if isinstance(error, TuneError):
        code, line = error.exit_code, f"error: {error}"
    elif isinstance(error, KeyboardInterrupt):
        code, line = 130, "interrupted"
    elif _is_out_of_memory(error):
        code, line = OUT_OF_MEMORY, f"error: {_explain_memory(error)}"
    elif place := users_place(error):
        whole = f"; the whole traceback is in {_log}" if logged and not debug else ""
        code, line = USERS_CODE, f"error: {place}: {shortened(described(error), LONGEST_LINE)}{_ported(error)}{whole}"
        seen = seen or redact(users_traceback(error))
    else:
        problem = shortened(described(error), LONGEST_LINE)
        where = f"the traceback is in {_log}, and --debug shows it" if logged else "the traceback is above"
        code, line = BUG, f"internal error: {problem}; {where}; please report it"
        seen = trace if debug or not logged else ""
    return _end(line, seen, code)


def _end(line: str, trace: str, code: int) -> int:
    """Say the last line of the program, or let the agent that started this process say it; return the exit code."""
    if worker.is_watched():
        _write_log(f"tune: {redact(line)}\n")
        worker.leave(redact(line), trace, code)
    sys.stderr.write(trace)
    say(line)
    return code


def _ported(error: BaseException) -> str:
    """Say what to do with a script of torchtune's."""
    if not isinstance(error, ImportError) or (error.name or "").partition(".")[0] != "torchtune":
        return ""
    return f"; {PORTING}"


def _write_log(trace: str) -> bool:
    if _log is None:
        return False
    try:
        with _log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(trace)
    except OSError:  # a disk that is full, perhaps what the error is about
        return False
    return True


def _is_out_of_memory(error: BaseException) -> bool:
    said = isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
    return said or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _explain_memory(error: BaseException) -> str:
    asked = re.search(r"tried to allocate ([\d.]+) (\w+)", str(error), re.IGNORECASE)
    size = asked and (f"{int(asked[1]) / 2**30:,.2f} GiB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}")
    more = f" ({size} more were asked for)" if asked else ""
    return (
        f"out of {'GPU ' if 'CUDA' in str(error) else ''}memory{more}; "
        "lower batch_size and raise gradient_accumulation_steps, lower tokenizer.max_seq_len, or set "
        "enable_activation_checkpointing=True"
    )


def _drop_closed_pipes() -> bool:
    """Return whether stdout or stderr is a pipe that nobody reads any more, and sends what is left for it nowhere."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            gone = _has_no_reader(stream.fileno())
        except BrokenPipeError:
            gone = True
        except (AttributeError, ValueError, OSError):  # no stream, or none of the system's
            continue
        if gone:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            closed = True
    return closed


def _has_no_reader(file: int) -> bool:
    """Tell by a look at a pipe that its other end is closed; an unbuffered stream keeps nothing whose flush would."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(file, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
