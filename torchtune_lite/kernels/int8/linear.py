"""Products with int8 weights. Inputs are rounded to int8, too, in blocks of 64, so that a block is summed in integers.

W [out, in].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.kernels.int8 import cpu
from torchtune_lite.kernels.int8.codec import LARGEST, Int8Weight, decode

BLOCK = 64
"""Inputs that share a scale."""


def linear(x: Tensor, weight: Int8Weight) -> Tensor:
    """Return `x Wᵀ + bias  [..., out]` of `x [..., in]`, in the dtype of x."""
    if cpu.takes(x):
        return cpu.linear(x, [weight])[0]
    return F.linear(rounded(x), decode(weight), weight.bias).to(x.dtype)


def rounded(x: Tensor) -> Tensor:
    """Round `x [..., n]` to 127 steps of the largest magnitude of each block, in float32."""
    blocks = F.pad(x.float(), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    steps = (blocks * torch.where(largest > 0, LARGEST / largest, 0)).round_()
    return (steps * (largest / LARGEST)).flatten(-2)[..., : x.shape[-1]]


def project(x: Tensor, *linears: nn.Module) -> Any:
    """Compute `modules.transformer.project` of projections with int8 weights, which read the input once."""
    weights = [getattr(each, "int8", None) for each in linears]
    return cpu.linear(x, weights) if None not in weights and cpu.takes(x) else NotImplemented


def gated_mlp(x: Tensor, w1: nn.Module, w2: nn.Module, w3: nn.Module, activation: str, tile: int | None) -> Any:
    """Compute `modules.transformer.gated_mlp` of projections with int8 weights in one go."""
    weights = [getattr(each, "int8", None) for each in (w1, w2, w3)]
    return cpu.gated_mlp(x, *weights, activation) if None not in weights and cpu.takes(x) else NotImplemented
