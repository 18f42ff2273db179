"""Weights in int8 with a scale for each row, stored as the compiled loops read them.

W [out, in].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 16, 4
"""Rows and columns that lie together."""
OFFSET = 128
"""What is added to a value, so that it is stored as a byte without a sign."""
LARGEST = 127


class Int8Weight:
    """A projection's weight `[out_dim, in_dim]`, and its `bias [out_dim] float32`, if it has one.

    `values [groups, steps, 16, 4] uint8` are those of 16 rows and 4 columns at a time; `scales` float32 are the rows'.
    Both are filled up to whole groups.
    """

    def __init__(self, values: Tensor, scales: Tensor, out_dim: int, in_dim: int, bias: Tensor | None = None) -> None:
        self.values, self.scales, self.out_dim, self.in_dim, self.bias = values, scales, out_dim, in_dim, bias

    @property
    def num_bytes(self) -> int:
        """The bytes that it is stored in."""
        return self.values.numel() + 4 * self.scales.numel()


@torch.no_grad()
def encode(weight: Tensor, bias: Tensor | None = None) -> Int8Weight:
    """Round `weight [out, in]` to 127 steps of each row's largest magnitude; the bias stays as it is."""
    out_dim, in_dim = weight.shape
    weight = weight.float()
    scales = weight.abs().amax(1) / LARGEST
    values = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_() + OFFSET
    padding = -out_dim % ROWS
    values = F.pad(values, (0, -in_dim % COLUMNS, 0, padding), value=OFFSET).to(torch.uint8)
    packed = values.view(-1, ROWS, values.shape[1] // COLUMNS, COLUMNS).transpose(1, 2).contiguous()
    return Int8Weight(packed, F.pad(scales, (0, padding)), out_dim, in_dim, None if bias is None else bias.float())


def decode(weight: Int8Weight) -> Tensor:
    """Return the values `[out, in] float32`."""
    rows = weight.values.transpose(1, 2).flatten(2).flatten(0, 1)
    return ((rows.float() - OFFSET) * weight.scales[:, None])[: weight.out_dim, : weight.in_dim]
