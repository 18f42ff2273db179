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

PEER = 8
"""The exit code of a process, or of a node, whose only trouble is that another has ended."""
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
GRACE = 600  # seconds for the save of a run that is stopped


@dataclass(frozen=True)
class End:
    """How a process ended: by itself, with its last `line`, or by a signal, `code` -9 of SIGKILL."""

    rank: int
    code: int
    time: float
    line: str = ""
    traceback: str = ""
    pid: int = 0

    @property
    def order(self) -> tuple[int, float, int]:
        """What sorts first is the reason for the others.

        A process that lost another ends with 8, and the agent ends those that are left with SIGTERM, then SIGKILL; a
        stop was asked for. All else comes first, and then what came earlier.
        """
        if self.code == PEER:
            return 2, self.time, self.rank
        if self.code == -signal.SIGTERM:
            return 3, self.time, self.rank
        return (1 if self.code > 128 else 0), self.time, self.rank


class OtherNodeError(TuneError):
    """The end of a run for a reason that another node knows."""

    exit_code = PEER


def launch(arguments: Any, command: Sequence[str]) -> None:
    """Run `python command` in as many processes as torchrun's `arguments` say; raise SystemExit where one fails."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of sockets that are closed as a run ends
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's own tale of it
    os.environ.setdefault(SHUTDOWN, str(GRACE))
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent
    from torch.distributed.run import config_from_args, determine_local_world_size

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="tune_run_"))
    has_own_logs = own_logs(arguments)
    arguments.log_dir = arguments.log_dir or str(folder)
    try:
        number = determine_local_world_size(arguments.nproc_per_node)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        config, _, _ = config_from_args(arguments)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"{' '.join(str(error).split())} ('torchrun --help' explains its arguments)") from error
    if not has_own_logs:
        quiet = {local: Std.ALL for local in range(1, number)}
        config.logs_specs = DefaultLogsSpecs(log_dir=str(folder), redirects=quiet)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: tell_children(number))
    ends, stopped = [], None
    try:
        launch_agent(config, sys.executable, ["-u", *command])
    except ChildFailedError as error:
        ends = [End(rank, each.exitcode, each.timestamp, pid=each.pid) for rank, each in error.failures.items()]
    except SignalException as error:
        stopped = error.sigval
    except (RuntimeError, OSError) as error:  # of the rendezvous
        raise unmet(error, arguments) from error
    finally:
        told = read_ends(Path(config.logs_specs.root_log_dir))
        if not any(end.code < 0 and end.code != -signal.SIGTERM for end in ends):
            shutil.rmtree(folder, ignore_errors=True)
    if ends or stopped:
        finish(told, ends, stopped, folder)


def parse(words: Sequence[str]) -> Any:
    """Read torchrun's flags as torchrun does; ConfigError for what it would not take, or cannot mean for a recipe."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog, parser.usage = "tune run", "tune run [torchrun's arguments] RECIPE --config CONFIG key=value ..."

    def refuse(message: str) -> NoReturn:
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


def own_logs(arguments: Any) -> bool:
    """Return whether the user has said where the output of processes goes."""
    said = arguments.log_dir, arguments.local_ranks_filter, arguments.logs_specs
    return any(said) or arguments.redirects != "0" or arguments.tee != "0"


def tell_children(number: int) -> None:
    """Pass a signal on to the processes that this one has started, where the system says which they are."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for pid in children.read_text().split() if children.exists() else ():
        os.kill(int(pid), number)


def read_ends(folder: Path) -> list[End]:
    """Read the last words of the processes of this node."""
    ends = []
    for path in folder.rglob("error.json"):
        try:
            ends.append(End(**json.loads(path.read_text(encoding="utf-8"))["end"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not written whole, as the process was killed
    return ends


def reason(told: Iterable[End], ends: Iterable[End]) -> End:
    """Choose why the run ended, of what processes have `told` and how each did end."""
    words = {end.rank: end for end in told}
    return min((words.get(end.rank, end) for end in [*ends, *words.values()]), key=lambda end: end.order)


def finish(told: Sequence[End], ends: Sequence[End], stopped: signal.Signals | None, folder: Path) -> NoReturn:
    """Say in one line why the run ended, and end with the exit code of that process."""
    if not told and not ends:
        errors.say(f"stopped by {stopped.name} before the first step; nothing to save")
        raise SystemExit(128 + stopped)
    end = reason(told, ends)
    if end.code == PEER and "parallel.timeout" not in end.line:
        raise OtherNodeError(end.line.removeprefix("error: ") or "a process on another node has ended")
    sys.stderr.write(end.traceback)
    if end.line:
        errors.say(named(end, told))
        raise SystemExit(end.code)
    errors.say(f"error: {killed(end, folder)}")
    raise SystemExit(PEER if end.code < 0 else end.code)


def named(end: End, told: Sequence[End]) -> str:
    """Write the last line of a process with its number, unless it speaks for all, or of what it was given."""
    kind, colon, what = end.line.partition("error: ")
    for_all = len(told) > 1 and all(each.line == end.line for each in told)
    return f"{kind}{colon}rank {end.rank}: {what}" if colon and not for_all and end.code != 2 else end.line


def killed(end: End, folder: Path) -> str:
    """Say what is known of a process that could not say anything."""
    if end.code >= 0:
        return f"rank {end.rank} ended with exit code {end.code} and no word; its log is in output_dir/logs"
    name = signal.Signals(-end.code).name if -end.code in set(signal.Signals) else f"signal {-end.code}"
    why = "out of memory, perhaps" if end.code == -signal.SIGKILL else f"what it printed is in {folder}"
    return f"rank {end.rank} (pid {end.pid}) was killed by {name} ({why}); go on with resume_from_checkpoint=True"


def unmet(error: Exception, arguments: Any) -> Exception:
    """Turn what the rendezvous says into an error of a line."""
    text = " ".join(str(error).split())
    if re.search(r"EADDRINUSE|[Aa]ddress already in use", text):
        flag = f"--master_port {arguments.master_port}"
        where = flag if arguments.rdzv_backend == "static" else f"--rdzv_endpoint {arguments.rdzv_endpoint}"
        return ConfigError(f"{where}: the port is in use; choose another, or leave it out for one node")
    return OtherNodeError(f"the nodes did not meet, or lost each other: {text}; look at the node that ended first")
