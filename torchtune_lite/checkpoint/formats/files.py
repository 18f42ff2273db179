"""The weight files of a checkpoint folder, and their content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors
from torchtune_lite.checkpoint.formats.torch_stream import read_torch
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.errors import CheckpointError
from torchtune_lite.utils import counted

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "consolidated.*.pth")
EDGE, SAMPLE, NUM_SAMPLES = 1 << 20, 4096, 64
"""Bytes that `sampled_sha256` reads at either end of a file and at each of as many places between."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top is an object; CheckpointError where it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold an object, has a {type(content).__name__}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a readable JSON file, which must not exist."""
    with disk.create(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def listed_files(folder: Path, names: Sequence[str] | Mapping[str, str]) -> list[Path]:
    """Return the files that `checkpoint_files` names: a list, or torchtune's `{filename_format, max_filename}`.

    `{filename_format: model-{}-of-{}.safetensors, max_filename: "00002"}` are the two files 00001 and 00002 of 00002.
    """
    if isinstance(names, Mapping):
        try:
            last, pattern = str(names["max_filename"]), names["filename_format"]
            names = [pattern.format(f"{i:0{len(last)}}", last) for i in range(1, int(last) + 1)]
        except (KeyError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"checkpointer.checkpoint_files is {dict(names)}; give a list of files, or filename_format with "
                'two {} and max_filename as a quoted number such as "00002"'
            ) from error
    files = [folder / name for name in names]
    if missing := _missing(files):
        found = [path.name for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
        there = f"; the folder has {listed(found)}: leave the key out to read what it holds" if found else ""
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {counted(len(files), 'file')} in checkpointer.checkpoint_files: "
            f"{listed(missing)}{there}"
        )
    return files


def hf_weight_files(folder: Path) -> list[Path]:
    """Find the weights in a Hugging Face folder: safetensors, else .bin; what an index names, else what is there.

    CheckpointError where transformers would read other ones than the index names.
    """
    for index, single, pattern in (
        (INDEX, "model.safetensors", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        if (folder / index).exists():
            files = _indexed(folder / index)
            if (folder / single).exists() and files != [folder / single]:
                raise CheckpointError(
                    f"{folder}: has {single} beside {index}, of which transformers reads the first; remove the one "
                    "that is not the model, or name the files in checkpointer.checkpoint_files"
                )
            return _existing(files, index)
        if (folder / single).exists():
            return [folder / single]
        if files := sorted(file for file in folder.glob(pattern) if not file.name.startswith("adapter_")):
            return files
    raise CheckpointError(f"{folder}: has no weights (model*.safetensors or pytorch_model*.bin)")


def _indexed(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index}: weight_map must map weights to files")
    names = sorted(set(shards.values()))
    if outside := [name for name in names if Path(name).name != name or "\\" in name]:
        raise CheckpointError(f"{index}: names files outside its folder: {', '.join(outside)}")
    return [index.parent / name for name in names]


def _existing(files: list[Path], named_by: str) -> list[Path]:
    if missing := _missing(files):
        raise CheckpointError(
            f"{files[0].parent} lacks {len(missing)} of {counted(len(files), 'file')} named by {named_by}: "
            f"{', '.join(missing)} (interrupted download?)"
        )
    return files


def _missing(files: list[Path]) -> list[str]:
    return [file.name for file in files if not _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def read_files(files: Sequence[Path]) -> dict[str, dict[str, Weight]]:
    """List the weights of each file, by file name and weight name; CheckpointError where two files have the same."""
    found: dict[str, dict[str, Weight]] = {}
    holder: dict[str, str] = {}
    for file in files:
        found[file.name] = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
        for name in found[file.name]:
            if name in holder:
                raise CheckpointError(f"{file.parent}: {name} is both in {holder[name]} and in {file.name}")
            holder[name] = file.name
    return found


def sampled_sha256(path: Path) -> str:
    """Hash the first and last MiB of a file and 64 blocks between: enough to know a model by.

    The header is in the first MiB, or for PyTorch's files in the last.
    """
    size = path.stat().st_size
    places = range(0, size, max(size // NUM_SAMPLES, SAMPLE))
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start, length in [(0, EDGE), *((place, SAMPLE) for place in places), (max(size - EDGE, 0), EDGE)]:
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()
