import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchtune_lite import errors
from torchtune_lite.checkpoint import claim_output_dir
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.checkpoint.store.claim import check_output_dir, read_run_id
from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import file_lock


def test_a_run_keeps_its_id(tmp_path: Path):
    assert read_run_id(tmp_path / "run") is None
    with claim_output_dir(tmp_path / "new" / "run") as first:
        assert read_run_id(tmp_path / "new" / "run") == first.run_id
    with claim_output_dir(str(tmp_path / "new" / "run")) as again, claim_output_dir(tmp_path / "other") as other:
        assert again.run_id == first.run_id != other.run_id
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [".lock", "run.json", "run.log"]


def test_a_second_run_is_told_who_is_there(tmp_path: Path):
    script = "from torchtune_lite.checkpoint import claim_output_dir as claim\n"
    script += f"c = claim({str(tmp_path)!r}); print('there'); input()"
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"there\n"
        with pytest.raises(
            ConfigError, match=rf"^another run \(pid {other.pid}, host .+\) is using output_dir"
        ) as error:
            claim_output_dir(tmp_path)
        assert "\n" not in str(error.value)
    finally:
        other.kill()
        other.communicate()
    claim_output_dir(tmp_path).release()  # the lock went with the process


def test_a_claim_ends_by_hand_too(tmp_path: Path):
    held = claim_output_dir(tmp_path)
    with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        claim_output_dir(tmp_path)
    held.release()
    held.release()
    claim_output_dir(tmp_path).release()


def test_the_log_of_a_run_gets_nothing_of_another_that_finds_the_folder_taken(tmp_path: Path, capsys):
    with claim_output_dir(tmp_path), pytest.raises(SystemExit), errors.reporting():
        claim_output_dir(tmp_path)
    assert "is using output_dir" in capsys.readouterr().err
    assert (tmp_path / "run.log").read_text() == ""


def test_what_killed_runs_left_is_removed(tmp_path: Path, caplog):
    for name in (".tmp-step_4-17", ".trash-step_1-17", "step_2", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / ".tmp-run.json-17").touch()
    with caplog.at_level(logging.INFO), claim_output_dir(tmp_path):
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".hidden", ".lock", "run.json", "run.log", "step_2"]
    assert sorted(caplog.messages) == [
        f"removed the remains of {tmp_path}/{name}, which a killed run left behind"
        for name in ("run.json", "step_1", "step_4")
    ]


def test_without_locks_one_warning_and_nothing_is_removed(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(file_lock, "fcntl", None)
    (tmp_path / ".tmp-step_4-17").mkdir()
    with claim_output_dir(tmp_path) as first, claim_output_dir(tmp_path) as second:
        assert first.run_id == second.run_id
    assert (tmp_path / ".tmp-step_4-17").exists()
    assert len(caplog.messages) == 2 and "do not start a second run in it" in caplog.messages[0]


def test_an_id_that_is_damaged_is_drawn_anew(tmp_path: Path, caplog):
    with claim_output_dir(tmp_path) as first:
        pass
    (tmp_path / "run.json").write_text("{")
    with claim_output_dir(tmp_path) as second:
        assert second.run_id != first.run_id
    assert "run.json is damaged" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir .*/file/run cannot be used: Not a directory"):
        claim_output_dir(tmp_path / "file" / "run")


def test_facts_of_the_run_stand_beside_its_id_and_may_be_lost(tmp_path: Path, monkeypatch, caplog):
    with claim_output_dir(tmp_path) as first:
        first.record({"steps": 3})
        first.record({"steps": 4})
        first.record({})
    assert json.loads((tmp_path / "run.json").read_text()) == {"run_id": first.run_id, "steps": 4}
    with claim_output_dir(tmp_path) as second:
        assert second.run_id == first.run_id

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(disk, "sync_file", full)
        second.record({"steps": 5})
    assert caplog.messages[-1] == f"{tmp_path}/run.json was not written: No space left on device"
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 4


def test_a_folder_that_cannot_be_claimed_is_known_before(tmp_path: Path, monkeypatch):
    check_output_dir(tmp_path / "new" / "run")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "closed")
    (tmp_path / "closed").mkdir()
    for folder, problem in (
        ("model", "it holds a model"),
        ("model/config.json/run", "config.json is a file"),
        ("closed/new/run", "closed may not be written to"),
    ):
        with pytest.raises(ConfigError, match=rf"^output_dir .*{folder} cannot be used: .*{problem}; choose another"):
            check_output_dir(tmp_path / folder)
    assert not (tmp_path / "new").exists()
