"""4-bit NormalFloat weights (QLoRA, arXiv 2305.14314, section 3), stored as torchao's `NF4Tensor`.

This file alone knows torchao, and imports it when the first weight is quantised: that import takes longer than all
others of a LoRA run. `NF4Tensor` is the type of the parameters, so that whatever knows torchao knows them; the
arithmetic on them is ours (`kernels.nf4`), many times faster and exact to the same bit.
"""

import importlib
import logging
import math
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from torchtune_lite.kernels.nf4 import codec
from torchtune_lite.kernels.nf4.codec import BLOCK, SCALER_BLOCK, NF4Weight
from torchtune_lite.utils.sharding import is_sharded, local


def import_torchao(module: str) -> ModuleType:
    """Import a module of torchao, without its compiled kernels, which nothing here calls, and what it says of them."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    try:
        return importlib.import_module(module)
    finally:
        logging.disable(disabled)


@cache
def _torchao() -> ModuleType:
    try:
        return import_torchao("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")  # 0.18 and later
    except ImportError:
        return import_torchao("torchao.dtypes.nf4tensor")


def fits_nf4(in_dim: int, out_dim: int) -> bool:
    """Return whether a weight of this shape fills whole blocks of scales: `in_dim · out_dim` divisible by 16,384."""
    return in_dim * out_dim % (BLOCK * SCALER_BLOCK) == 0


def shards(tensor: Tensor, number: int) -> bool:
    """Return whether the rows of an NF4 weight are whole blocks of scales where so many processes share them."""
    rows, cols = tensor.shape
    return rows % number == 0 and fits_nf4(cols, rows // number)


def quantize(weight: Tensor, shard_of: Tensor | None = None) -> Tensor:
    """Quantise `weight [out_dim, in_dim]`, on its own device, to an `NF4Tensor` that remembers its dtype.

    Where `shard_of` is sharded, `weight` is its rows here, quantised as parts of the whole: all processes do so. The
    bits are those of torchao's `to_nf4`, but for what `codec.encode` says of zeros and float16. Takes a few MB
    beside the result. ValueError for a misfit in shape, and for NaN or infinity.
    """
    if not fits_nf4(weight.shape[1], weight.shape[0]):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} does not hold a multiple of 16,384 values, which NF4 needs"
        )
    if weight.is_meta:
        return from_nf4_parts(weight.shape, blank_parts(weight.shape, weight.dtype))
    if shard_of is None or not is_sharded(shard_of):
        return from_nf4_parts(weight.shape, codec.encode(weight))

    def gather(scales: Tensor) -> Tensor:
        return type(shard_of).from_local(scales, shard_of.device_mesh, shard_of.placements).full_tensor()

    return from_nf4_parts(weight.shape, codec.encode(weight, gather))


def is_quantized(tensor: Tensor) -> bool:
    """Return whether `tensor` is stored as NF4."""
    return hasattr(local(tensor), "quantized_data")


def dequantize(tensor: Tensor) -> Tensor:
    """Return the values of `tensor` as a plain tensor in the dtype it was quantised from; a plain one stays.

    Of a sharded one, those of its rows here.
    """
    tensor = local(tensor)
    return codec.decode(nf4_parts(tensor), tuple(tensor.shape)) if is_quantized(tensor) else tensor


def nf4_parts(tensor: Tensor) -> NF4Weight:
    """Return the plain tensors that a quantised one is stored in; of a sharded one, its rows here."""
    tensor = local(tensor)
    if (tensor.block_size, tensor.scaler_block_size) != (BLOCK, SCALER_BLOCK):
        raise ValueError(f"NF4 with blocks of {tensor.block_size} is not supported; quantise in blocks of {BLOCK}")
    return NF4Weight(*(getattr(tensor, name) for name in NF4Weight._fields))


def storage(weight: Tensor) -> list[Tensor]:
    """Return the plain tensors that a weight, plain or NF4, is stored in: what the products of `kernels` take."""
    return list(nf4_parts(weight)) if is_quantized(weight) else [local(weight)]


def blank_parts(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> NF4Weight:
    """Return the parts, on the meta device, that a weight of this shape and dtype is quantised to."""
    return codec.blank(math.prod(shape), dtype, torch.device("meta"))


def from_nf4_parts(shape: torch.Size | tuple[int, ...], parts: NF4Weight) -> Tensor:
    """Make an `NF4Tensor [out_dim, in_dim]` of its parts, which it keeps."""
    torchao = _torchao()
    dtype, device = parts.nf4.dtype, parts.nf4.device
    meta = torchao.SubclassTensorArgs(torch.Size(shape), (shape[1], 1), 0, dtype, device, False)
    return torchao.NF4Tensor(
        meta,
        BLOCK,
        parts.quantized_scalers.numel(),
        SCALER_BLOCK,
        parts.quantized_scalers,
        parts.quantization_factor,
        parts.scaler_mean,
        parts.quantized_data,
        parts.nf4,
    )


def num_bytes(tensor: Tensor) -> int:
    """Count the bytes that `tensor` is stored in, here."""
    parts = nf4_parts(tensor)[:-1] if is_quantized(tensor) else [local(tensor)]  # all weights share the levels
    return sum(part.numel() * part.itemsize for part in parts)


def upcast_state_dict(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict) -> None:
    """State-dict post hook: return NF4 weights in their original dtype on the CPU; the live model stays quantised."""
    for name, value in state_dict.items():
        if is_quantized(value):
            state_dict[name] = dequantize(value).cpu()
