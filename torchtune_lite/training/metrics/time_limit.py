"""Calls to a service that may never return."""

import threading
from collections.abc import Callable
from typing import Any


class Hangs(Exception):  # noqa: N818 (no error of this program)
    """What was called did not return in time."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what `call` returns or raises what it raises; Hangs after so many seconds, and leaves it to itself."""
    results: list[Any] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Hangs(f"not finished after {seconds:g} s")
    return results[0]
