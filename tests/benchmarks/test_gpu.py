"""The GPU benchmark in small, on a CPU: that it runs, and that a row has its numbers."""

import re
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def test_it_runs_in_small(monkeypatch, capsys):
    words = ["--device", "cpu", "--size", "tiny", "--steps", "1", "--rows", "7b-qlora-lean", "8b-qlora-kept"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    number = r"[\d,]+(\.\d+)?"
    row = rf"\| {number} GiB \| {number} GiB \| {number} s \| {number} \| nan% \| {number}% \|"
    assert re.fullmatch(rf"\| 7b-qlora-lean \| 2 × 32 {row}", lines[4])
    assert re.fullmatch(rf"\| 8b-qlora-kept \| 2 × 128 {row}", lines[5])
    assert "2,413" in lines[6]
