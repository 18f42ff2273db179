"""The script for a GPU, rehearsed on a CPU: it starts from any folder, twice, and ends with a table."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_session.sh"
ROWS = "60 8b-lora ours\n60 no-such-row ours"


def session(folder, **changes):
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "GPU_SESSION_DEVICE": "cpu",
        "GPU_SESSION_TESTS": "tests/optim/test_paged.py",
        "GPU_SESSION_ROWS": ROWS,
        "OUT": "found",
        **changes,
    }
    command = ["bash", str(SCRIPT), "no_wheels"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done, folder / "found"


def test_it_writes_a_table_in_which_a_row_that_fails_is_a_line(tmp_path):
    done, found = session(tmp_path)
    assert done.returncode == 0, done.stderr
    table = (found / "table.md").read_text().splitlines()
    assert table[0].startswith("`pytest -m gpu`: ") and "skipped" in table[0]
    assert "a bf16 product reaches" in table[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert {len(row) for row in rows} == {9}
    ours, failed = rows[-2:]
    assert ours[:3] == ["8b-lora", "torchtune_lite", "2 × 128"] and ours[4].endswith("GiB")
    assert failed[:2] == ["no-such-row", "ours"] and "invalid choice" in failed[3]
    assert "invalid choice: 'no-such-row'" in (found / "log.txt").read_text()
    assert not [path for path in tmp_path.iterdir() if path != found]


def test_started_again_without_time_it_says_so_and_leaves_nothing_of_the_first_table(tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "table.md").write_text("of the first time")
    done, found = session(tmp_path, GPU_SESSION_SECONDS="0")
    assert done.returncode == 0, done.stderr
    table = (found / "table.md").read_text()
    assert table.count("no time left") == 4 and "first time" not in table


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torchao'] = None\n")
    missing = tmp_path / "python"
    missing.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    missing.chmod(0o755)
    done, _ = session(tmp_path, PYTHON=str(missing))
    assert done.returncode == 1 and "torchao" in done.stdout and "is missing: put its wheel into" in done.stdout
