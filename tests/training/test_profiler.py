import gzip
import json
from pathlib import Path

import pytest
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.training import Profiler, setup_torch_profiler


def steps(profiler: Profiler, count: int) -> None:
    for number in range(count):
        with torch.profiler.record_function(f"step {number}"):
            torch.ones(4) @ torch.ones(4)
        profiler.step()
    profiler.stop()


def test_records_the_steps_that_are_asked_for(tmp_path: Path):
    steps(Profiler(output_dir=str(tmp_path / "new"), wait_steps=1, warmup_steps=1, active_steps=2, num_cycles=1), 6)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["trace_4.json.gz", "trace_4.txt"]
    trace = json.loads(gzip.decompress((tmp_path / "new" / "trace_4.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"step 2", "step 3", "aten::dot"} <= names and not names & {"step 0", "step 1", "step 4", "step 5"}
    assert "aten::dot" in (tmp_path / "new" / "trace_4.txt").read_text()


def test_what_is_off_writes_nothing(tmp_path: Path):
    steps(setup_torch_profiler(output_dir=str(tmp_path / "off"), active_steps=1), 3)
    steps(Profiler(False, str(tmp_path / "off")), 3)
    assert not (tmp_path / "off").exists()


def test_a_folder_that_cannot_be_written_costs_the_trace_alone(tmp_path: Path, log_lines):
    (tmp_path / "file").write_text("")
    steps(Profiler(output_dir=str(tmp_path / "file"), wait_steps=0, warmup_steps=1, active_steps=1), 3)
    (line,) = log_lines
    assert line.startswith(f"profiler: {tmp_path}/file/trace_2.json.gz was not written (")


def test_what_cannot_be_recorded_is_an_error():
    with pytest.raises(ConfigError, match="^profiler: nothing to record"):
        Profiler(cpu=False, cuda=False)
    with pytest.raises(ConfigError, match="^profiler.active_steps=0"):
        Profiler(active_steps=0)


@pytest.mark.parametrize(("taken", "recorded"), [(0, 0), (3, 0), (5, 0), (6, 1), (7, 2)])
def test_a_run_too_short_for_its_trace_says_so(taken, recorded, tmp_path: Path, log_lines):
    steps(Profiler(output_dir=str(tmp_path), wait_steps=3, warmup_steps=2, active_steps=2), taken)
    assert len(list(tmp_path.glob("*.json.gz"))) == (recorded > 0), "no trace is written that is empty"
    warnings = [line for line in log_lines if "the trace has" in line]
    assert len(warnings) == (0 < taken < 7)
    for line in warnings:
        assert f"has {recorded} of 2 steps: the run took {taken}, and the first 5 are left out" in line
