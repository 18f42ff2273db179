"""safetensors files, one tensor at a time: a file of any size passes through the memory of its largest tensor.

The format (safetensors' README): 8 bytes of header length, a JSON header with every dtype, shape and place, then the
values. The header needs no values, so it is written first.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchtune_lite.checkpoint.formats.weights import Weight, as_bytes
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.errors import CheckpointError
from torchtune_lite.utils import counted

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Files = Mapping[Path, Mapping[str, Weight]]
"""Files to be written, each with its weights."""


def read_safetensors(path: Path) -> dict[str, Weight]:
    """List the weights of a file by name; each is mapped when it is read and unmapped when it is dropped.

    CheckpointError for a file that is damaged or holds a dtype unknown here.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            header = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        reason = " ".join(str(error).rpartition(": ")[2].split())
        problem = damage(path) or f"is not a safetensors file, or its header is damaged ({reason}); fetch it again"
        raise CheckpointError(f"{path}: {problem}") from error
    if unknown := sorted({dtype for dtype, _ in header.values()} - DTYPES.keys()):
        raise CheckpointError(f"{path}: weights are {', '.join(unknown)}; load an fp32, bf16 or fp16 checkpoint")

    def weight(name: str, dtype: str, shape: tuple[int, ...]) -> Weight:
        return Weight(DTYPES[dtype], shape, lambda: _read(path, name), lambda *rows: _read(path, name, slice(*rows)))

    return {name: weight(name, dtype, shape) for name, (dtype, shape) in header.items()}


def _read(path: Path, name: str, rows: slice | None = None) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]


def write_safetensors(path: Path, weights: Mapping[str, Weight]) -> None:
    """Write `weights` to a new file, each read when its turn comes and dropped after it."""
    write_safetensors_files({path: weights})


def write_safetensors_files(files: Files) -> None:
    """Write several new files; the disk's space for all is taken before the first weight is read.

    OSError at once where that much is not free, if the file system can tell.
    """
    lay_out(files)
    fill(files)


def lay_out(files: Files) -> None:
    """Create files with their headers, and take the disk's space for the values."""
    for path, weights in files.items():
        text, places = _header(weights)
        with disk.create(path) as file:
            disk.reserve(file, len(text) + sum(weight.num_bytes for weight, _ in places))
            file.write(text)


def fill(files: Files, *, leads: bool = True) -> None:
    """Write into files that are laid out what this process has of the weights, and of others what one that `leads` has.

    Each is read when its turn comes and dropped after it: all of them, whose reading may need other processes, before
    an OSError of the first that could not be written.
    """
    problem = None
    for path, weights in files.items():
        text, places = _header(weights)
        for weight, start in places:
            width = weight.num_bytes // max(weight.shape[0], 1) if weight.shape else 0
            for row, values in weight.pieces(leads=leads):
                try:
                    if problem is None and values.numel():
                        with disk.update(path) as file:
                            file.seek(len(text) + start + row * width)
                            file.write(as_bytes(values))
                except OSError as error:
                    problem = error
    if problem is not None:
        raise problem


def _header(weights: Mapping[str, Weight]) -> tuple[bytes, list[tuple[Weight, int]]]:
    """Return what a file begins with, and `weights` in their order there, each with its place after that."""
    order = sorted(weights.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # keeps every value aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    places, end = [], 0
    for name, weight in order:
        start, end = end, end + weight.num_bytes
        header[name] = {"dtype": NAMES[weight.dtype], "shape": weight.shape, "data_offsets": (start, end)}
        places.append((weight, start))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def damage(path: Path) -> str | None:
    """Return the kind of a file that is not a whole safetensors file; None if it is not obvious."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        if not start:
            return "is empty (interrupted download?)"
        if start.startswith(b"version https://git-lfs"):
            return f"is a git-lfs pointer ({counted(size, 'byte')}), not the weights; run 'git lfs pull'"
        if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            return "is a web page, not weights (was the download refused?)"
        if start.startswith(b"PK"):
            return "is a PyTorch file; name it .pth or .bin"
        length = int.from_bytes(start[:8], "little")
        try:
            file.seek(8)
            header = json.loads(file.read(length)) if length < size else {}
            expected = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
    if size == expected:
        return None
    return f"is {'truncated' if size < expected else 'too long'}: {size:,} of {counted(expected, 'byte')}"
