"""The GPU benchmark at small size on a CPU: it runs, and its rows have numbers."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


NUMBER = r"[\d,]+(\.\d+)?"
ROW = rf"\| {NUMBER} GiB \| {NUMBER} GiB \| {NUMBER} s \| {NUMBER} \| nan% \| {NUMBER}% \|"


def lines(monkeypatch, capsys, *words):
    words = ["--device", "cpu", "--size", "tiny", "--steps", "1", *words]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_it_runs_in_small(monkeypatch, capsys):
    printed = lines(monkeypatch, capsys, "--rows", "7b-qlora-lean", "8b-qlora-kept")
    assert re.fullmatch(rf"\| 7b-qlora-lean \| torchtune_lite \| 2 × 32 {ROW}", printed[4])
    assert re.fullmatch(rf"\| 8b-qlora-kept \| torchtune_lite \| 2 × 128 {ROW}", printed[5])
    assert "2,413" in printed[6]


@pytest.mark.parametrize("row", ["8b-lora", "8b-qlora"])
def test_so_does_a_peer(monkeypatch, capsys, row):
    pytest.importorskip("bitsandbytes")
    [printed] = lines(monkeypatch, capsys, "--rows", row, "--by", "peft", "--bare")
    assert re.fullmatch(rf"\| {row} \| transformers \+ PEFT \| 2 × 128 {ROW}", printed)
