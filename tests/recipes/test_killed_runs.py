"""Runs that are killed with SIGKILL lose nothing and resume bit for bit; benchmarks/reliability.py kills more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from contextlib import redirect_stdout
from pathlib import Path
from tests.recipes.killed_runs import Pair, Run, kills
sys.modules["matplotlib"] = None  # a picture takes longer than the run
with redirect_stdout(sys.stderr):
    make = {"one": Run, "two": Pair}[sys.argv[2]]
    rows, _ = kills(Path(sys.argv[1]), int(sys.argv[3]), seed=0, kinds=["LoRA"], make=make)
print(json.dumps([number for _, number in rows]))
"""


@pytest.mark.parametrize(("processes", "number"), [("one", 2), ("two", 1)])
def test_killed_runs_lose_nothing_and_are_resumed_to_the_bit(tmp_path: Path, processes: str, number: int):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [
        sys.executable,
        "-c",
        SCRIPT,
        str(tmp_path),
        processes,
        str(number),
    ]  # the runs are forked from a process without threads
    result = subprocess.run(words, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kills, invalid, lost, equal = json.loads(result.stdout)
    assert int(kills) >= number
    assert invalid.startswith("0 of ") and lost.startswith("0 of ")
    same, _, runs = equal.partition(" of ")
    assert same == runs
