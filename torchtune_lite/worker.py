"""A process among several that an agent, `tune run`'s or torchrun's, has started: its number, and its last words."""

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

PEER = 8
"""The exit code of a process, or of a node, whose only trouble is that another has ended, or hangs."""
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""The variable with the file that an agent reads when a process of its has failed."""


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return int(os.environ.get("RANK", 0))


def num_processes() -> int:
    """Return how many processes run together: 1 without an agent."""
    together = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if together else 1


def is_watched() -> bool:
    """Return whether an agent waits for the end of this process."""
    return bool(os.environ.get(ERROR_FILE))


def end_with_agent() -> None:
    """Be asked to stop when the agent dies, of which nothing else would tell (Linux).

    SIGTERM may come once for each thread of the agent, which is no more than once; a second SIGINT would be.
    """
    if is_watched():
        end_with_parent(signal.SIGTERM)


def end_with_parent(signum: int) -> None:
    """Ask for a signal when the process dies that started this one (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signum)


def leave(line: str, traceback: str, code: int) -> NoReturn:
    """Hand the line that says why this process ends over to its agent, which says one for all, and end at once.

    Others may be waiting for this process, so nothing is cleaned up that might wait for them.
    """
    extra = {"py_callstack": f"{traceback}{line}", "timestamp": str(int(time.time()))}  # as torchrun shows it
    end = {"rank": rank(), "line": line, "traceback": traceback, "code": code, "time": time.time()}
    with suppress(OSError), open(os.environ[ERROR_FILE], "w", encoding="utf-8") as file:  # of an agent that is gone
        json.dump({"message": {"message": line, "extraInfo": extra}, "end": end}, file)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
