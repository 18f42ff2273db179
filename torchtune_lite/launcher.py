"""Starts the processes that train together: torchrun's own parser and agent, whose findings end as `tune` ends.

Only the process of local rank 0 writes to the terminal; what the others print goes to files, as do the last words of
each (`worker.leave`), of which the one line is chosen that says why the run ended.
"""

import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torchtune_lite import errors
from torchtune_lite.errors import ConfigError, TuneError
from torchtune_lite.worker import PEER

SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
GRACE = 600  # seconds for the save of a run that is stopped
AGENT_WAITS = 20  # seconds at least between SIGTERM and SIGKILL of the agent
HANGS = "parallel.timeout"  # in what a process says of one that it has waited for in vain


@dataclass(frozen=True)
class End:
    """How a process ended: with its last `line`, or without a word; `code` is -9 where SIGKILL ended it."""

    rank: int
    code: int
    time: float
    line: str = ""
    traceback: str = ""
    pid: int = 0


class OtherNodeError(TuneError):
    """The end of a run for a reason that another node knows."""

    exit_code = PEER


def launch(arguments: Any, command: Sequence[str]) -> None:
    """Run `python command` in as many processes as torchrun's `arguments` say; raise SystemExit where one fails."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of sockets that are closed as a run ends
    os.environ.setdefault(SHUTDOWN, str(GRACE))
    if arguments.max_restarts:  # else the second attempt reads in the store where those of the first listened
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    logging.disable()  # torchrun's own tale of it
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: tell_children(number))
    folder = Path(tempfile.mkdtemp(prefix="tune_run_"))
    ends: list[End] = []
    try:
        config = agents_config(arguments, folder)
        launch_agent(config, sys.executable, ["-u", *command])
    except ChildFailedError as error:
        ends = [End(rank, each.exitcode, each.timestamp, pid=each.pid) for rank, each in error.failures.items()]
        finish(ends, read_ends(config.logs_specs.root_log_dir), folder)
    except SignalException as error:
        if told := read_ends(config.logs_specs.root_log_dir):
            finish([], told, folder)
        errors.say(f"stopped by {error.sigval.name}")
        raise SystemExit(128 + error.sigval) from None
    except ConfigError:
        raise
    except Exception as error:  # of the rendezvous, as many kinds as it has backends
        raise unmet(error, arguments) from error
    finally:
        if not any(is_crash(end.code) for end in ends):
            shutil.rmtree(folder, ignore_errors=True)


def agents_config(arguments: Any, folder: Path) -> Any:
    """Make torchrun's config; what processes print and leave goes to `folder`, unless the user has said where."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.run import config_from_args, determine_local_world_size

    said = arguments.log_dir, arguments.local_ranks_filter, arguments.logs_specs
    has_own_logs = any(said) or arguments.redirects != "0" or arguments.tee != "0"
    arguments.log_dir = arguments.log_dir or str(folder)
    try:
        number = determine_local_world_size(arguments.nproc_per_node)
        if number < 1:
            raise ValueError(f"--nproc_per_node {number}: at least one process is needed")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        config, _, _ = config_from_args(arguments)
    except (ValueError, AssertionError, RuntimeError, OSError) as error:
        raise ConfigError(f"{' '.join(str(error).split())} ('torchrun --help' explains its arguments)") from error
    if not has_own_logs:
        quiet = {local: Std.ALL for local in range(1, number)}
        config.logs_specs = DefaultLogsSpecs(log_dir=str(folder), redirects=quiet)
    return config


def parse(words: Sequence[str]) -> Any:
    """Read torchrun's flags as torchrun does; ConfigError for what it would not take, or cannot mean for a recipe."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog, parser.usage = "tune run", "tune run [torchrun's arguments] RECIPE --config CONFIG key=value ..."

    def refuse(message: str) -> NoReturn:
        if re.search(r"required: training_script|arguments: .*--config", message):
            raise ConfigError(f"name the recipe behind torchrun's arguments: {parser.usage} ('tune ls' shows all)")
        raise ConfigError(f"{message} ('torchrun --help' explains its arguments)")

    parser.error = refuse
    arguments = parser.parse_args(words)
    for flag in ("module", "no_python", "run_path"):
        if getattr(arguments, flag):
            raise ConfigError(f"--{flag}: 'tune run' starts a recipe; leave the argument out")
    named = arguments.rdzv_endpoint or getattr(arguments, "master_port", None) is not None
    alone = arguments.rdzv_backend == "static" and str(arguments.nnodes) in ("1", "1:1") and not named
    if arguments.standalone or alone:  # any free port
        arguments.rdzv_backend, arguments.rdzv_endpoint = "c10d", "localhost:0"
        arguments.rdzv_id = str(uuid.uuid4())
    if arguments.master_port is None:
        arguments.master_port = 29500
    return arguments


def tell_children(number: int) -> None:
    """Pass a signal on to the processes that this one has started, where the system says which they are."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for pid in children.read_text().split() if children.exists() else ():
        os.kill(int(pid), number)


def read_ends(folder: Path | str) -> list[End]:
    """Read the last words of the processes of this node, in the last of its attempts (`--max_restarts`)."""
    attempts = sorted(Path(folder).rglob("attempt_*"), key=lambda path: path.stat().st_mtime_ns)
    ends = []
    for path in attempts[-1].glob("*/error.json") if attempts else ():
        try:
            ends.append(End(**json.loads(path.read_text(encoding="utf-8"))["end"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not written whole, as the process was killed
    return ends


def reason(ends: Iterable[End], told: Iterable[End]) -> End:
    """Choose why the run ended, of how processes ended and what they have `told`: the first end of its own accord.

    Not that of a process that lost another, which is its code 8, nor that of one which the agent then stopped: by
    SIGTERM, and by SIGKILL half a minute later. A stop that was asked for is less than an error on the way to it.
    """
    words = {end.rank: end for end in told}
    all_ends = [*(end for end in ends if end.rank not in words), *words.values()]
    first = min(end.time for end in all_ends)

    def order(end: End) -> tuple[int, float, int]:
        by_agent = end.code == -signal.SIGTERM or (end.code == -signal.SIGKILL and end.time > first + AGENT_WAITS)
        kind = 3 if by_agent else 2 if end.code == PEER else 1 if end.code > 128 else 0
        return kind, end.time, end.rank

    return min(all_ends, key=order)


def finish(ends: Sequence[End], told: Sequence[End], folder: Path) -> NoReturn:
    """Say in one line why the run ended, and end with the exit code of that process."""
    end = reason(ends, told)
    if end.code == PEER and HANGS not in end.line:
        raise OtherNodeError(end.line.removeprefix("error: ") or "a process on another node has ended")
    sys.stderr.write(end.traceback)
    errors.say(named(end, told) if end.line else untold(end, folder))
    raise SystemExit(end.code if end.code >= 0 else 128 - end.code if is_stop(end.code) else PEER)


def named(end: End, told: Sequence[End]) -> str:
    """Write the last line of a process with its number, unless it speaks for all, of its input, or of another one."""
    kind, colon, what = end.line.partition("error: ")
    for_all = len(told) > 1 and all(each.line == end.line for each in told)
    if not colon or for_all or end.code == ConfigError.exit_code or HANGS in what:
        return end.line
    return f"{kind}{colon}rank {end.rank}: {what}"


def untold(end: End, folder: Path) -> str:
    """Say what is known of a process that could not say anything."""
    if end.code >= 0:
        return f"error: rank {end.rank} ended with exit code {end.code} without a word; its log is in output_dir/logs"
    name = signal.Signals(-end.code).name if -end.code in set(signal.Signals) else f"signal {-end.code}"
    if is_stop(end.code):
        return f"stopped by {name} before the first step; nothing to save"
    why = "out of memory, perhaps" if end.code == -signal.SIGKILL else f"what it printed is in {folder}"
    resume = "go on from the last checkpoint, if there is one, with resume_from_checkpoint=auto"
    return f"error: rank {end.rank} (pid {end.pid}) was killed by {name}, {why}; {resume}"


def is_stop(code: int) -> bool:
    """Return whether a process ended by a signal that asks for that."""
    return -code in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT))


def is_crash(code: int) -> bool:
    """Return whether a process ended by a signal of another kind, of which only its output may tell."""
    return code < 0 and not is_stop(code) and code != -signal.SIGKILL


def unmet(error: Exception, arguments: Any) -> Exception:
    """Turn what the rendezvous says into an error of a line."""
    text = " ".join(str(error).split())
    if re.search(r"EADDRINUSE|[Aa]ddress already in use", text):
        flag = f"--master_port {arguments.master_port}"
        where = flag if arguments.rdzv_backend == "static" else f"--rdzv_endpoint {arguments.rdzv_endpoint}"
        return ConfigError(f"{where}: the port is in use; choose another, or leave it out for one node")
    return OtherNodeError(
        f"the nodes did not meet, or lost each other: {errors.shortened(text)}; look at the node that ended first"
    )
