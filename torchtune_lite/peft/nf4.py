"""4-bit NormalFloat weights (QLoRA, arXiv 2305.14314, section 3), stored as torchao's `NF4Tensor`.

This file alone knows torchao, and imports it when the first weight is quantised: that import takes longer than all
others of a LoRA run.
"""

import importlib
import logging
from functools import cache
from types import ModuleType

from torch import Tensor, nn

BLOCK_SIZE, SCALER_BLOCK_SIZE = 64, 256
"""Weights that share a scale, and scales that share a second one (double quantisation)."""


@cache
def _torchao() -> ModuleType:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of compiled kernels that NF4 has no use for
    try:
        return importlib.import_module("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")  # 0.18 and later
    except ImportError:
        return importlib.import_module("torchao.dtypes.nf4tensor")
    finally:
        logging.disable(disabled)


def fits_nf4(in_dim: int, out_dim: int) -> bool:
    """Tells whether a weight of this shape fills whole blocks of scales: `in_dim · out_dim` divisible by 16,384."""
    return in_dim * out_dim % (BLOCK_SIZE * SCALER_BLOCK_SIZE) == 0


def quantize(weight: Tensor) -> Tensor:
    """Quantises `weight [out_dim, in_dim]` to an `NF4Tensor` that remembers its dtype; ValueError for a misfit.

    Codes are torchao's: nearest of 16 levels times the largest magnitude of 64 weights, those scales stored as int8.
    """
    if not fits_nf4(weight.shape[1], weight.shape[0]):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} is no multiple of 16,384 values, which NF4 needs")
    return _torchao().to_nf4(weight.detach(), BLOCK_SIZE, SCALER_BLOCK_SIZE)


def is_quantized(tensor: Tensor) -> bool:
    """Tells whether `tensor` is stored as NF4."""
    return _torchao.cache_info().currsize > 0 and isinstance(tensor, _torchao().NF4Tensor)


def dequantize(tensor: Tensor) -> Tensor:
    """Gives the values of `tensor` as a plain tensor in the dtype it was quantised from; a plain one stays."""
    return tensor.get_original_weight() if is_quantized(tensor) else tensor


def upcast_state_dict(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict) -> None:
    """State-dict post hook: returns NF4 weights in their original dtype on the CPU; the live model stays quantised."""
    for name, value in state_dict.items():
        if is_quantized(value):
            state_dict[name] = dequantize(value).cpu()
