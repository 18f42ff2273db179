"""`metrics.jsonl`: valid JSON whatever the values, one run a file, no step twice after a resume."""

import json
import math
from contextlib import closing

import numpy as np
import torch

from torchtune_lite.training.metrics import metrics_file
from torchtune_lite.training.metrics.metrics_file import MetricsFile, read_metrics


def reject(constant):
    raise ValueError(f"{constant} is not JSON")


def strict_rows(path):
    """Read the lines with a parser that refuses NaN and Infinity."""
    return [json.loads(line, parse_constant=reject) for line in path.read_text().splitlines()]


def write(folder, steps, **kwargs):
    file = MetricsFile(folder, **kwargs)
    for step in steps:
        file.log_dict({"loss": step / 10}, step)
    file.close()
    return file.path


def test_each_line_is_on_the_disk_at_once(tmp_path):
    file = MetricsFile(tmp_path)
    file.log_dict({"loss": 1.5, "epoch": 0}, 1)
    assert strict_rows(file.path) == [{"step": 1, "loss": 1.5, "epoch": 0}]


def test_tensors_and_arrays_become_numbers(tmp_path):
    file = MetricsFile(tmp_path)
    file.log_dict({"loss": torch.tensor(0.5, dtype=torch.bfloat16), "lr": np.float64(1e-4), "tokens": np.int64(7)}, 1)
    assert strict_rows(file.path) == [{"step": 1, "loss": 0.5, "lr": 1e-4, "tokens": 7}]


def test_values_that_are_not_finite_are_null_and_noted(tmp_path):
    file = MetricsFile(tmp_path)
    file.log_dict({"loss": math.nan, "grad_norm": torch.tensor(-math.inf), "lr": 0.1}, 3)
    assert strict_rows(file.path) == [
        {"step": 3, "loss": None, "grad_norm": None, "lr": 0.1, "nonfinite": {"loss": "nan", "grad_norm": "-inf"}}
    ]


def test_a_fresh_start_sets_an_earlier_run_aside(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [1, 2])
    path = write(tmp_path, [1])
    assert [row["step"] for row in strict_rows(path)] == [1]
    assert [row["step"] for row in strict_rows(tmp_path / "metrics-1.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in strict_rows(tmp_path / "metrics-2.jsonl")] == [1, 2]


def test_a_resumed_run_goes_on_without_the_lines_past_its_step(tmp_path):
    path = write(tmp_path, [1, 2, 3, 4, 5])
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a killed run's torn line
    write(tmp_path, [4, 5, 6], resumed_step=3)
    assert [(row["step"], row["loss"]) for row in strict_rows(path)] == [(step, step / 10) for step in range(1, 7)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_the_rows_that_were_cut_away_are_known_by_step_and_names(tmp_path):
    with closing(MetricsFile(tmp_path)) as file:
        for step in (1, 2, 3):
            file.log_dict({"loss": math.nan}, step)
        file.log_dict({"val_loss": 1.0}, 3)
        assert file.cut_rows == set()
    with closing(MetricsFile(tmp_path, resumed_step=1)) as file:
        names = frozenset({"loss"})
        assert file.cut_rows == {(2, names), (3, names), (3, frozenset({"val_loss"}))}


def test_no_row_is_compared_with_the_others(tmp_path, monkeypatch):
    class Row(dict):
        compared = 0

        def __eq__(self, other):
            Row.compared += 1
            return super().__eq__(other)

    write(tmp_path, range(1, 101))
    monkeypatch.setattr(metrics_file.json, "loads", lambda line, loads=json.loads: Row(loads(line)))
    with closing(MetricsFile(tmp_path, resumed_step=50)) as file:
        assert len(file.cut_rows) == 50 and Row.compared == 0


def test_a_run_resumed_elsewhere_starts_its_file(tmp_path):
    assert [row["step"] for row in strict_rows(write(tmp_path / "new", [8], resumed_step=7))] == [8]


def test_reading_passes_over_a_torn_line(tmp_path):
    path = write(tmp_path, [1, 2])
    with path.open("a") as file:
        file.write('{"step": 3')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_reads_the_metrics_that_are_asked_for(tmp_path):
    with closing(MetricsFile(tmp_path)) as file:
        file.log_dict({"loss": 2.0, "lr": 0.1}, 1)
        file.log_dict({"val_loss": 3.0}, 1)
    wanted = read_metrics(tmp_path / "metrics.jsonl", ("val_loss", "loss"))
    assert wanted == [{"step": 1, "loss": 2.0}, {"step": 1, "val_loss": 3.0}]
