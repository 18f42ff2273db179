import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoint import corruption
from tests.checkpoint.little_run import run
from torchtune_lite.checkpoint import latest, verify
from torchtune_lite.checkpoint.store import discovery
from torchtune_lite.checkpoint.store.manifest import MANIFEST, has_manifest, read_manifest, write_manifest
from torchtune_lite.errors import CheckpointError


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run(folder, [1, 2])
    return folder


def test_a_damaged_checkpoint_is_passed_over_or_refused_by_name(two_checkpoints: Path):
    one, two = two_checkpoints / "step_1", two_checkpoints / "step_2"
    assert corruption.files(two) == ["1.safetensors", "2.safetensors", MANIFEST, "resume/trainer.json"]
    count = sum(corruption.sweep(two, one, file) for file in corruption.files(two))
    assert count == 4 * len(corruption.DAMAGES)
    verify(two)


def test_the_sweep_finds_a_damage_that_is_not_noticed(two_checkpoints: Path, monkeypatch):
    """Negative control: comparing only sizes."""
    monkeypatch.setattr(discovery, "verify", partial(verify, quick=True))
    with pytest.raises(AssertionError, match="1.safetensors: first bit"):
        corruption.sweep(two_checkpoints / "step_2", two_checkpoints / "step_1", "1.safetensors")


def test_a_whole_checkpoint_is_the_one_to_go_on_from(two_checkpoints: Path, caplog):
    """Negative control: the sweep's checkpoints are refused for their damage only."""
    assert latest(two_checkpoints) == two_checkpoints / "step_2" and not caplog.messages


def test_what_was_found_and_what_was_written_is_said(two_checkpoints: Path, tmp_path: Path):
    def message(file: str, damage: str) -> str:
        shutil.copytree(two_checkpoints / "step_2", tmp_path / damage)
        corruption.DAMAGES[damage](tmp_path / damage / file, two_checkpoints / "step_1" / file)
        with pytest.raises(CheckpointError) as error:
            verify(tmp_path / damage)
        return str(error.value).removeprefix(f"{tmp_path / damage}")

    size = (two_checkpoints / "step_2" / "1.safetensors").stat().st_size
    written = f"{size:,} were written"
    start = " is damaged: 1.safetensors"
    assert message("1.safetensors", "last byte gone") == f"{start} is truncated: {size - 1:,} bytes, {written}"
    assert message("1.safetensors", "a byte too many") == f"{start} is too long: {size + 1:,} bytes, {written}"
    assert message("1.safetensors", "web page").startswith(f"{start} is a web page, not weights")
    assert message("1.safetensors", "LFS pointer").startswith(f"{start} is a git-lfs pointer")
    assert message("1.safetensors", "deleted") == f"{start} is missing"
    assert " was changed: its sha256 is " in message("1.safetensors", "a bit of the body")


def test_every_bit_of_a_manifest_counts(two_checkpoints: Path, tmp_path: Path):
    folder = tmp_path / "step_2"
    shutil.copytree(two_checkpoints / "step_2", folder)
    content, whole = (folder / MANIFEST).read_bytes(), read_manifest(folder)
    for place in range(0, len(content), 3):
        (folder / MANIFEST).write_bytes(
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        )
        try:
            assert read_manifest(folder) == whole  # white space
        except CheckpointError as error:
            assert MANIFEST in str(error)


def test_a_quick_look_compares_sizes_only(two_checkpoints: Path, tmp_path: Path):
    shutil.copytree(two_checkpoints / "step_2", tmp_path / "step_2")
    path = tmp_path / "step_2" / "1.safetensors"
    corruption.flip(lambda size: size - 1)(path, path)
    verify(tmp_path / "step_2", quick=True)
    with pytest.raises(CheckpointError):
        verify(tmp_path / "step_2")
    os.truncate(path, 5)
    with pytest.raises(CheckpointError):
        verify(tmp_path / "step_2", quick=True)


def test_a_manifest_names_run_step_and_files_and_minds_no_other(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"abc")
    assert not has_manifest(tmp_path)
    write_manifest(tmp_path, run_id="7f3a", step=120)
    assert has_manifest(tmp_path)
    manifest = read_manifest(tmp_path)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (manifest.run_id, manifest.step) == ("7f3a", 120)
    assert manifest.files == {"sub/x": {"size": 3, "sha256": sha256}}
    (tmp_path / "notes").touch()
    verify(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path):
    write_manifest(tmp_path, run_id=None, step=None)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(CheckpointError, match="MANIFEST.json: has format 2, this version reads 1"):
        verify(tmp_path)


def test_a_file_that_cannot_be_read_is_named(two_checkpoints: Path, tmp_path: Path, monkeypatch):
    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("torchtune_lite.checkpoint.store.disk.sha256", refuse)
    with pytest.raises(CheckpointError, match="1.safetensors cannot be read .Input/output error"):
        verify(two_checkpoints / "step_2")
