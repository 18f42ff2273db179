"""GGUF files, written and read one tensor at a time with the package `gguf`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchtune_lite.checkpoint import check_space
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import is_finite, listed
from torchtune_lite.errors import CheckpointError, ConfigError, SaveError
from torchtune_lite.export.gguf.metadata import Metadata
from torchtune_lite.utils import counted, get_logger

KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""What a user calls the types of weights, and what the package does."""
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types that torch has, too."""

log = get_logger()


def library() -> Any:
    """Import the package `gguf`; ConfigError where it is missing."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise ConfigError("GGUF needs the package gguf: pip install 'torchtune_lite[gguf]'") from None
    return gguf


def write_gguf(path: Path, architecture: str, metadata: Metadata, tensors: Mapping[str, Weight], kind: str) -> None:
    """Write a new file of tensors of the type `kind`, one of `KINDS`, each read when its turn comes and dropped.

    Vectors are float32; a matrix whose rows are not a multiple of the block size of q8_0 is f16, and a line says so.
    SaveError names a tensor of which a value is beyond float16.
    """
    gguf = library()
    types = {name: _type(gguf, weight, KINDS[kind]) for name, weight in tensors.items()}
    if odd := [name for name, each in types.items() if each.name == "F16" and kind == "q8_0"]:
        are = counted(len(odd), "tensor is", "tensors are")
        log.warning("%s written as F16, with rows that are not a multiple of 32, as Q8_0 needs: %s", are, listed(odd))
    sizes = {name: _num_bytes(gguf, weight, types[name]) for name, weight in tensors.items()}
    check_space(path, sum(sizes.values()))
    writer = gguf.GGUFWriter(path, architecture)
    try:
        for key, value in metadata.items():
            integer = isinstance(value, int) and not isinstance(value, bool)
            value_type = gguf.GGUFValueType.UINT32 if integer else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, value_type)
        for name, weight in tensors.items():
            writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), sizes[name], types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in tensors.items():
            writer.write_tensor_data(_encoded(gguf, name, weight, types[name]))
    finally:
        writer.close()


def _type(gguf: Any, weight: Weight, wanted: str) -> Any:
    """Return the type of a tensor's values in a file whose matrices are `wanted`."""
    types = gguf.GGMLQuantizationType
    if len(weight.shape) == 1:
        return types.F32
    block, _ = gguf.GGML_QUANT_SIZES[types[wanted]]
    return types.F16 if weight.shape[-1] % block else types[wanted]


def _num_bytes(gguf: Any, weight: Weight, kind: Any) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return torch.Size(weight.shape).numel() // block * size


def _encoded(gguf: Any, name: str, weight: Weight, kind: Any) -> np.ndarray:
    values = weight.read().detach().cpu().contiguous()
    if kind.name in PLAIN:
        values = values.to(PLAIN[kind.name])
        if not is_finite(values):
            raise SaveError(f"{name} holds NaN, infinity, or values beyond {kind.name}; write bf16 or f32 instead")
        return values.view(torch.uint8).numpy()
    return gguf.quants.quantize(values.float().numpy(), kind)


def read_gguf(path: Path) -> tuple[Metadata, dict[str, Weight]]:
    """Read the keys of a file and list its tensors; values of a type that torch lacks are computed as float32.

    CheckpointError for a file that is damaged, one part of several, or holds a type that the package cannot read.
    """
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: each.contents() for name, each in reader.fields.items() if not name.startswith("GGUF.")}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: is not a GGUF file, or truncated; fetch it again") from error
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(f"{path}: is one of {metadata['split.count']} parts; join them: llama-gguf-split --merge")
    kinds = {each.tensor_type for each in reader.tensors}
    if unknown := sorted(each.name for each in kinds if not _is_readable(gguf, each)):
        raise CheckpointError(f"{path}: holds tensors of type {', '.join(unknown)}, which the package gguf cannot read")
    return metadata, {tensor.name: _weight(gguf, tensor) for tensor in reader.tensors}


def _is_readable(gguf: Any, kind: Any) -> bool:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _weight(gguf: Any, tensor: Any) -> Weight:
    dtype = PLAIN.get(tensor.tensor_type.name)
    shape = tuple(reversed(tensor.shape.tolist()))

    def read() -> Tensor:
        if dtype is None:
            return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
        return torch.from_numpy(np.array(tensor.data)).view(dtype).reshape(shape)

    return Weight(dtype or torch.float32, shape, read)
