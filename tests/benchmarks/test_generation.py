"""The benchmark of answers in small: that it runs, and that each contender has its numbers."""

import logging
import re
import runpy
import sys
from pathlib import Path

import torch

from tests.models import tiny

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "generation.py"
CELL = r"[\d,.]+ \([\d.]+ ×\)"


def test_it_runs_in_small(tmp_path, monkeypatch, capsys):
    tiny.make("llama3").save_pretrained(tmp_path)
    words = ["--threads", "1", "--batches", "1", "2", "--new-tokens", "4", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), *words])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)
    rows = [line for line in capsys.readouterr().out.splitlines() if "×" in line]
    names = ["transformers, float32", "ours, float32", "ours, int8"]
    assert len(rows) == len(names)
    for row, name in zip(rows, names, strict=True):
        assert re.fullmatch(rf"\| {name} \| {CELL} \| {CELL} \| {CELL} \|", row)
