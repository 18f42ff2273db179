"""Weights in int4 as torchao's `Int4Tensor`, without the package mslk that torchao needs to make one.

The layout is that of mslk's product (pytorch/ao, int4_tensor.py): two codes a byte, the first in its lower half, and
for each group of a row a scale and a zero, which lie by groups, then rows. A weight is code · scale + zero, its code
from -8 to 7. Only that product, on GPUs, reads it.

o rows, i columns, g groups.
"""

import torch
from torch import Tensor

from torchtune_lite.peft.nf4 import import_torchao

GROUP = 128
"""Weights of a row that share a scale; torchao's own number."""
DTYPE = torch.bfloat16
"""Of scales, zeros and what is multiplied, the only one of that product."""


def encode(weight: Tensor) -> Tensor:
    """Quantise `weight [o, i]`, i a multiple of `GROUP`, between the smallest and the largest value of each group."""
    groups = weight.float().unflatten(1, (-1, GROUP))  # [o, g, GROUP]
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low).clamp(min=1e-6) / 15
    codes = ((groups - low) / scale).round().clamp(0, 15).to(torch.int8).flatten(1) - 8  # [o, i]
    packed = codes[:, 1::2] << 4 | codes[:, ::2] & 15
    scales, zeros = (each[..., 0].t().to(DTYPE).contiguous() for each in (scale, low + 8 * scale))  # [g, o]
    return import_torchao("torchao.quantization").Int4Tensor(packed, scales, zeros, [1, GROUP], weight.shape)


def decode(weight: Tensor) -> Tensor:
    """Return the values of an `Int4Tensor`, `[o, i] float32`."""
    codes = torch.stack([weight.qdata << 4 >> 4, weight.qdata >> 4], -1).flatten(1)
    groups = codes.unflatten(1, (-1, GROUP)).float()
    scales, zeros = (each.float().t()[..., None] for each in (weight.scale, weight.zero_point))
    return (groups * scales + zeros).flatten(1)
