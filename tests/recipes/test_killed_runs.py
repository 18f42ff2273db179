"""Runs that are killed with SIGKILL lose nothing and resume bit for bit; benchmarks/reliability.py kills more."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from contextlib import redirect_stdout
from pathlib import Path
from tests.recipes.killed_runs import kills
sys.modules["matplotlib"] = None  # a picture takes longer than the run
with redirect_stdout(sys.stderr):
    rows, _ = kills(Path(sys.argv[1]), 2, seed=0, kinds=["LoRA"])
print(json.dumps([number for _, number in rows]))
"""


def test_killed_runs_lose_nothing_and_are_resumed_to_the_bit(tmp_path: Path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]  # the runs are forked from a process without threads
    result = subprocess.run(words, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kills, invalid, lost, equal = json.loads(result.stdout)
    assert int(kills) >= 2
    assert invalid.startswith("0 of ") and lost.startswith("0 of ")
    same, _, runs = equal.partition(" of ")
    assert same == runs
