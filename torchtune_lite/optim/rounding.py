"""float32 values kept in bfloat16: with what rounding cuts off beside them, or rounded at random.

A bfloat16 is the upper half of a float32, so both work on bit patterns.
"""

import torch
from torch import Tensor


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bfloat16 of float32 `values`, and as int16 what `join` needs to restore them to the bit.

    A tie is rounded away from zero: to even, the rest of a tie would not fit into 16 bits.
    """
    bits = values.view(torch.int32)
    upper = (bits + 0x8000).bitwise_right_shift_(16)
    return upper.to(torch.int16).view(torch.bfloat16), (bits - upper.bitwise_left_shift_(16)).to(torch.int16)


def join(rounded: Tensor, remainder: Tensor) -> Tensor:
    """Restore the float32 values that `split` made `rounded` and `remainder` of."""
    bits = rounded.view(torch.int16).to(torch.int32)
    return bits.bitwise_left_shift_(16).add_(remainder).view(torch.float32)


def round_at_random(values: Tensor) -> Tensor:
    """Round float32 `values` up or down to bfloat16, each with the chance that makes the mean right.

    Draws from the device's default generator, whose state a checkpoint keeps.
    """
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device).random_(-(1 << 63), None)
    noise = draws.view(torch.int16)[: values.numel()].view(values.shape).to(torch.int32)  # four a draw, from -2^15
    bits = noise.add_(values.view(torch.int32)).add_(0x8000).bitwise_right_shift_(16)
    return bits.to(torch.int16).view(torch.bfloat16)
