"""Whose code an error comes from: the user's own file, or this package."""

import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

INSTALLED = {"site-packages", "dist-packages"}
IN_WORKER = "Original Traceback (most recent call last)"  # torch's words for an error in a process that loads data

_is_named: Callable[[str], bool] | None = None


def count_as_users(is_named: Callable[[str], bool]) -> None:
    """Let modules for whose names `is_named` is true count as the user's from here on, though they are installed."""
    global _is_named
    _is_named = is_named


def users_place(error: BaseException) -> str | None:
    """Return `my_loss.py:12`, the line of the user's that an error comes from; None where it comes from this package.

    That is the innermost frame that is neither the standard library's nor an installed package's, which do as they are
    told; of a file that is not Python, the line that says so.
    """
    if isinstance(error, SyntaxError) and error.filename and _whose(error.filename, "") == "users":
        return f"{shown(error.filename)}:{error.lineno}"
    for path, line, module in reversed(list(_frames(error))):
        whose = _whose(path, module)
        if whose != "others":
            return f"{shown(path)}:{line}" if whose == "users" else None
    return None


def users_traceback(error: BaseException) -> str:
    """Return the traceback from the first frame of the user's on."""
    trace = error.__traceback__
    while trace is not None and _whose(trace.tb_frame.f_code.co_filename, _module(trace)) != "users":
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def described(error: BaseException) -> str:
    """Return the kind of an error and what it says, in one line."""
    text = str(error).rstrip().rpartition("\n")[2] if IN_WORKER in str(error) else str(error)
    name = type(error).__name__
    if isinstance(error, SyntaxError):
        text = error.msg
    return " ".join((text if text.startswith(f"{name}: ") else f"{name}: {text}").split())


def _frames(error: BaseException) -> Iterator[tuple[str, int, str]]:
    """Yield file, line and module of each frame, those of another process last."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno, _module(trace)
        trace = trace.tb_next
    if IN_WORKER in (text := str(error)):
        for path, line in re.findall(r'^ *File "(.+)", line (\d+), in ', text, re.MULTILINE):
            yield path, int(line), ""


def _module(trace: TracebackType) -> str:
    return trace.tb_frame.f_globals.get("__name__") or ""


def _whose(file: str, module: str) -> str:
    """Return "ours", "users", or "others" for the standard library, installed packages and code without a file."""
    path = Path(file)
    if any(path.is_relative_to(folder) for folder in _our_folders()):
        return "ours"
    if _is_named is not None and _is_named(module):
        return "users"
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    installed = INSTALLED & set(path.parts) or any(path.is_relative_to(folder) for folder in library)
    return "others" if installed or not path.is_file() else "users"


def _our_folders() -> list[Path]:
    from torchtune_lite.catalog import folder

    return [Path(__file__).resolve().parent, folder("recipes")]


def shown(file: str | Path) -> str:
    """Return a path as its reader would write it: from the working directory, where it lies below that."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
