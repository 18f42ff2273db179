"""`tune run` with torchrun's arguments: one line, the right exit code and a bounded time, whatever ends the run.

The processes are real ones; most of them train nothing, but meet in each step as a run's do.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.free_port import free_port
from torchtune_lite import launcher
from torchtune_lite.errors import ConfigError
from torchtune_lite.launcher import End, agents_config, finish, named, parse, read_ends, reason, unmet

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
import os
import signal
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from torchtune_lite import config
from torchtune_lite.training.distributed import Processes, World
from torchtune_lite.training.settings import Parallel
from torchtune_lite.training.signals import Signals, StopRequested


@dataclass(kw_only=True)
class Settings:
    fault: str = "none"
    rank: int = 1
    parallel: Parallel = config.mapping(Parallel)


def fail(cfg: Settings, world: World) -> None:
    if cfg.fault in ("raise", "once"):
        raise ZeroDivisionError("of mine")
    if cfg.fault == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else it would be half a minute until SIGKILL
        time.sleep(300)
    if cfg.fault == "stop":
        os.kill(os.getpid(), signal.SIGTERM)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    if cfg.fault == "once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
        cfg.fault = "none"
    if cfg.fault == "early" and int(os.environ["RANK"]) == cfg.rank:
        raise ZeroDivisionError("before they meet")
    world = Processes(torch.device("cpu"), cfg.parallel.timeout)
    with Signals(world.size) as signals:
        for step in range(1, 6 if cfg.fault == "none" else 10_000):
            world.place = f"step {step}"
            world.gather(step)  # as a run does more than once between two polls
            try:
                signals.told(list(map(int, world.sum(*signals.noted()))))
            except StopRequested as request:
                raise request.stopped(step, None) from None
            if world.rank == 0:
                print("step", step, os.getppid(), flush=True)
            if step == 3 and cfg.fault == "hang":
                world.timeout = timedelta(seconds=3)  # once all are there
                _set_pg_timeout(world.timeout, world._control)
            if step == 3 and world.rank == cfg.rank:
                fail(cfg, world)
            time.sleep(0.02)
    world.close()


if __name__ == "__main__":
    sys.exit(recipe_main())
"""


@pytest.fixture
def start(tmp_path):
    """Starts `tune run` of the recipe above."""
    (tmp_path / "fault.py").write_text(RECIPE)
    (tmp_path / "fault.yaml").write_text("parallel: {timeout: 60}\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    started = []

    def run(*words: str, flags: str = "--nproc_per_node 2") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torchtune_lite", "run", *flags.split(), "fault.py", "--config", "fault.yaml"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*command, *words], cwd=tmp_path, env=environment, **pipes))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()


def end_of(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, list[str]]:
    """Waits for the end; gives the exit code and the lines of `tune`, without what stands above them."""
    _, stderr = process.communicate(timeout=seconds)
    lines = [line for line in stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d INFO", line)]
    return process.returncode, lines


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    for line in process.stdout:
        if line.startswith(f"step {step} "):
            return
    raise AssertionError(process.stderr.read())


def test_processes_meet_and_end(start, tmp_path):
    process = start()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [line.split()[1] for line in out.splitlines()] == list("12345")
    assert err.count("\n") == 1 and "INFO 2 processes, rank 0 on cpu" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("tune_run", "torchelastic"))]


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("early", 1, r"error: rank 1: fault.py:\d+: ZeroDivisionError: before they meet"),
        ("hang", 8, r"error: rank 1 did not come to step 4 in \d s \(parallel.timeout\): it hangs, or .*"),
        ("stop", 143, "stopped by SIGTERM before the first step; nothing to save"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(start, fault, code, line):
    found, lines = end_of(start(f"fault={fault}"))
    assert found == code, lines
    assert re.fullmatch(f"tune: {line}", lines[-1])
    assert [each for each in lines if each.startswith("tune: ")] == lines[-1:]
    assert fault == "early" or len(lines) == 1  # else with the user's own traceback


def test_processes_stop_when_their_launcher_is_killed(start, tmp_path):
    process = start("fault=signals")
    wait_for_step(process, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in children)
    ends = [(end.code, end.line.partition(" before")[0]) for end in read_ends(tmp_path)]
    assert ends == [(143, "stopped by SIGTERM")] * 2  # a stop, with which a run saves, and no loss of each other


def test_a_second_attempt_meets_as_the_first(start):
    process = start("fault=once", flags="--nproc_per_node 2 --max_restarts 1")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert [line.split()[1] for line in out.splitlines()][-5:] == list("12345")


def test_two_nodes_meet_on_loopback_and_end_together(start):
    with free_port() as port:
        flags = f"--nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint localhost:{port} --rdzv_id 7"
        nodes = [start("fault=raise", flags=flags) for _ in range(2)]
        ends = sorted(end_of(node) for node in nodes)
    assert [code for code, _ in ends] == [1, 8]
    assert "error: rank 1: fault.py:" in ends[0][1][-1]
    assert re.fullmatch(r"tune: error: a process on another node has ended, .*", ends[1][1][-1])


def test_a_port_that_is_in_use_is_said(start):
    with socket.socket() as used:
        used.bind(("localhost", 0))
        used.listen()
        port = used.getsockname()[1]
        code, lines = end_of(start(flags=f"--nproc_per_node 2 --master_addr localhost --master_port {port}"))
    assert code == 2
    assert lines == [
        f"tune: error: --master_port {port}: the port is in use; choose another, or leave it out for one node"
    ]


SIGKILL = -signal.SIGKILL


@pytest.mark.parametrize(
    ("told", "ends", "rank"),
    [
        ([End(0, 8, 10.3, "error: lost")], [End(0, 8, 10), End(1, SIGKILL, 10)], 1),
        ([End(0, 8, 10.3, "error: lost")], [End(0, 8, 10), End(1, SIGKILL, 41)], 0),  # by the agent, of one that hung
        ([End(0, 3, 10.9, "error: rows"), End(1, 8, 10.95, "error: lost")], [End(0, 3, 10), End(1, 8, 10)], 0),
        ([End(1, 3, 10.9, "error: rows")], [End(0, -15, 10), End(1, 3, 10)], 1),
        ([End(0, 143, 9.9, "stopped"), End(1, 5, 10.5, "error: disk")], [], 1),
        ([End(0, 4, 10.6, "error: a"), End(1, 4, 10.5, "error: a")], [], 1),
    ],
)
def test_the_reason_is_what_was_not_caused_by_another(told, ends, rank):
    assert reason(ends, told).rank == rank


def test_a_line_has_its_rank_unless_it_is_of_all():
    one, two = End(0, 3, 1.0, "internal error: a"), End(1, 3, 1.0, "internal error: a")
    assert named(one, [one]) == "internal error: rank 0: a"
    assert named(one, [one, two]) == "internal error: a"
    assert named(End(1, 2, 1.0, "error: bad key"), []) == "error: bad key"
    assert named(End(1, 143, 1.0, "stopped by SIGTERM"), []) == "stopped by SIGTERM"


def test_a_process_that_crashed_says_where_its_output_is(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        finish([End(2, -signal.SIGSEGV, 1.0, pid=7)], [], tmp_path)
    assert end.value.code == 8
    assert f"rank 2 (pid 7) was killed by SIGSEGV, what it printed is in {tmp_path};" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "backend", "endpoint"),
    [
        ("--nproc_per_node 2", "c10d", "localhost:0"),
        ("--standalone --nnodes=1", "c10d", "localhost:0"),
        ("--nproc-per-node=2 --master_port 4", "static", ""),
        ("--nnodes 2 --rdzv_endpoint h:1 --rdzv-backend c10d", "c10d", "h:1"),
    ],
)
def test_one_node_takes_any_free_port(words, backend, endpoint):
    arguments = parse([*words.split(), "recipe", "--config", "x"])
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == (backend, endpoint)
    assert (arguments.training_script, arguments.training_script_args) == ("recipe", ["--config", "x"])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--nproc_per_node", "expected one argument"),
        ("--nproc_per_node 2", "name the recipe behind torchrun's arguments: tune run .* RECIPE --config CONFIG"),
        ("--nproc_per_node 2 --config qlora", "name the recipe behind torchrun's arguments"),
        ("--nproc_per_nodes 2 x --config qlora", "unrecognized arguments: --nproc_per_nodes"),
        ("--module --nproc_per_node 2 x", "--module: 'tune run' starts a recipe"),
    ],
)
def test_what_torchrun_does_not_take_is_refused(words, answer):
    with pytest.raises(ConfigError, match=answer):
        parse(words.split())


@pytest.mark.parametrize("number", ["0", "-1"])
def test_there_is_at_least_one_process(tmp_path, number):
    with pytest.raises(ConfigError, match=f"--nproc_per_node {number}: at least one process is needed"):
        agents_config(parse(["--nproc_per_node", number, "recipe"]), tmp_path)


def test_the_last_words_are_those_of_the_last_attempt_and_none_that_are_torn(tmp_path):
    assert launcher.read_ends(tmp_path) == []
    end = {"rank": 0, "code": 3, "time": 1.5, "line": "error: x", "traceback": ""}
    for attempt, text in enumerate((json.dumps({"end": end | {"code": 4}}), json.dumps({"end": end}))):
        folder = tmp_path / "run_1" / f"attempt_{attempt}"
        for rank, content in enumerate((text, '{"message": {"mess')):
            (folder / str(rank)).mkdir(parents=True)
            (folder / str(rank) / "error.json").write_text(content)
        os.utime(folder, (attempt, attempt))
    assert launcher.read_ends(tmp_path) == [End(**end)]


def test_nodes_that_do_not_meet_are_another_nodes_fault():
    error = unmet(RuntimeError("connection\nreset"), parse(["--nnodes=2", "--rdzv_endpoint=a:1", "x"]))
    assert error.exit_code == 8 and "lost each other: connection reset" in str(error)
