import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torchtune_lite.checkpoint.formats.files import (
    INDEX,
    hf_weight_files,
    listed_files,
    read_files,
    read_json,
    sampled_sha256,
    write_json,
)
from torchtune_lite.errors import CheckpointError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def index(folder: Path, *shards: str, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}))


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_a_folder_is_read_by_its_index_else_by_what_it_holds(tmp_path: Path):
    make(tmp_path, "pytorch_model.bin")
    assert names(hf_weight_files(tmp_path)) == ["pytorch_model.bin"]
    make(tmp_path, "a.safetensors", "b.safetensors", "adapter_model.safetensors")
    assert names(hf_weight_files(tmp_path)) == ["a.safetensors", "b.safetensors"]
    make(tmp_path, "model.safetensors")
    assert names(hf_weight_files(tmp_path)) == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
    assert names(hf_weight_files(tmp_path)) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("single", "name", "shards"),
    [
        ("model.safetensors", INDEX, ["a.safetensors", "b.safetensors"]),
        ("model.safetensors", INDEX, ["a.safetensors", "model.safetensors"]),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", ["a.bin"]),
    ],
)
def test_a_single_file_beside_an_index_is_refused_unless_it_is_the_one(tmp_path: Path, single, name, shards):
    """transformers reads the single file, the index names others; only the user knows which is the model."""
    make(tmp_path, *{single, *shards})
    index(tmp_path, *shards, name=name)
    with pytest.raises(CheckpointError, match=f"has {single} beside {name}, of which transformers reads the first"):
        hf_weight_files(tmp_path)
    assert names(listed_files(tmp_path, shards)) == shards
    index(tmp_path, single, single, name=name)
    assert names(hf_weight_files(tmp_path)) == [single]


def test_listed_files_that_are_not_there_are_answered_with_those_that_are(tmp_path: Path):
    """As in a torchtune config for .bin files, over a download of safetensors."""
    listed = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    with pytest.raises(CheckpointError, match=f"lacks 2 of the 2 files in .*checkpoint_files: {', '.join(listed)}$"):
        listed_files(tmp_path, listed)
    for there in ("model-00001-of-00002.safetensors", "consolidated.00.pth", "pytorch_model.bin"):
        make(tmp_path, there)
        with pytest.raises(CheckpointError, match=f"{there}.*: leave the key out to read what it holds") as error:
            listed_files(tmp_path, listed)
        (tmp_path / there).unlink()
        assert "\n" not in str(error.value)


def test_torch_files_have_an_index_too(tmp_path: Path):
    make(tmp_path, "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    assert len(hf_weight_files(tmp_path)) == 2
    index(tmp_path, "pytorch_model-00002-of-00002.bin", name="pytorch_model.bin.index.json")
    assert names(hf_weight_files(tmp_path)) == ["pytorch_model-00002-of-00002.bin"]


def test_missing_shards_are_all_named(tmp_path: Path):
    make(tmp_path, "1.safetensors")
    index(tmp_path, "1.safetensors", "2.safetensors", "3.safetensors")
    with pytest.raises(CheckpointError, match="2 of 3 files.*2.safetensors, 3.safetensors"):
        hf_weight_files(tmp_path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", ".."])
def test_an_index_names_no_file_elsewhere(tmp_path: Path, shard: str):
    index(tmp_path, shard)
    with pytest.raises(CheckpointError, match="outside its folder|lacks 1 of 1 file named by"):
        hf_weight_files(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {"a": 1}}', "{"])
def test_a_broken_index_is_named(tmp_path: Path, content: str):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        hf_weight_files(tmp_path)


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(CheckpointError, match="has no weights"):
        hf_weight_files(tmp_path)


def test_checkpoint_files_as_list_and_in_torchtunes_form(tmp_path: Path):
    make(tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    form = {"filename_format": "model-{}-of-{}.safetensors", "max_filename": "00002"}
    expected = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(listed_files(tmp_path, form)) == names(listed_files(tmp_path, expected)) == expected
    with pytest.raises(CheckpointError, match="2 of the 3 files in checkpointer.checkpoint_files.*00001-of-00003"):
        listed_files(tmp_path, [*expected[:1], "model-00001-of-00003.safetensors", "x"])
    with pytest.raises(CheckpointError, match="max_filename as a quoted number"):
        listed_files(tmp_path, {"filename_format": "model-{}-of-{}.safetensors"})


def test_a_weight_in_two_files_is_refused(tmp_path: Path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="w is both in a.safetensors and in b.safetensors"):
        read_files(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("[]", "must hold an object"), (None, "not exist")]
)
def test_json_that_cannot_be_read(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "config.json")


def test_json_is_readable_and_goes_there_and_back(tmp_path: Path):
    write_json(tmp_path / "x.json", {"a": "é"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'
    assert read_json(tmp_path / "x.json") == {"a": "é"}


def test_a_model_is_known_by_samples_of_its_file(tmp_path: Path):
    path, content = tmp_path / "x", bytearray(9_000_000)
    path.write_bytes(content)
    hashes = [sampled_sha256(path)]
    for place in (0, 4_500_000, 8_999_999):
        changed = content.copy()
        for i in range(max(place - 100_000, 0), min(place + 100_000, len(content))):  # about the size of a projection
            changed[i] = 1
        path.write_bytes(changed)
        hashes.append(sampled_sha256(path))
    path.write_bytes(content + b"0")
    assert len({*hashes, sampled_sha256(path)}) == 5
    path.write_bytes(b"")
    assert sampled_sha256(path)
