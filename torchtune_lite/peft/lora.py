"""LoRA: low-rank adaptation of a frozen projection (Hu et al., arXiv 2106.09685).

r rank; W [out, in], A [r, in], B [out, r].
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft.nf4 import quantize
from torchtune_lite.peft.nf4_linear import linear, row_tiles, stored


class LoRALinear(nn.Module):
    """A frozen projection with a trained update: `y = W x + (alpha / r) · B A dropout(x)` (section 4.1).

    A starts as U(-1/√in, 1/√in) and B as zero, so that training starts at the base model (the authors' code; the paper
    says Gaussian). `dropout` 0.0 is off. With `quantize_base`, W is kept in NF4 (QLoRA) and dequantised in each pass;
    `in_dim · out_dim` must then be divisible by 16,384, else ValueError. A and B may be kept in more precision than W;
    the product is in that of x.
    """

    def __init__(
        self, in_dim: int, out_dim: int, rank: int, alpha: float, dropout: float = 0.0, quantize_base: bool = False
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.rank, self.alpha = in_dim, out_dim, rank, alpha
        self.scaling = alpha / rank
        weight = nn.Linear(in_dim, out_dim, bias=False).weight
        self.weight = nn.Parameter(quantize(weight) if quantize_base else weight.detach(), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Linear(in_dim, rank, bias=False)
        self.lora_b = nn.Linear(rank, out_dim, bias=False)
        self.init_adapter()

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Makes fresh adapter parameters on the device of the base weight, in its dtype unless another is given."""
        for factor in (self.lora_a, self.lora_b):
            made = torch.empty(factor.weight.shape, dtype=dtype or self.weight.dtype, device=self.weight.device)
            factor.weight = nn.Parameter(made)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)

    def adapter_params(self) -> list[str]:
        """Names of the trained parameters within this module."""
        return ["lora_a.weight", "lora_b.weight"]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., in]` to `[..., out]`."""
        h = F.linear(self.dropout(x), self.lora_a.weight.to(x.dtype))  # [..., r]
        y = linear(x, self.weight)
        y.view(-1, self.out_dim).addmm_(  # neither a scaled copy of the update nor one of the sum
            h.view(-1, self.rank), self.lora_b.weight.to(y.dtype).t(), alpha=self.scaling
        )
        return y

    @torch.no_grad()
    def merged_weight(self, base: Tensor | None = None) -> Tensor:
        """Gives `W + (alpha / r) · B A [out, in]`, summed in float32, in W's dtype.

        An NF4 W is dequantised; `base` takes the place of W. The result is the only tensor of that size that is made.
        """
        merged = torch.empty(self.weight.shape, dtype=self.weight.dtype, device=self.weight.device)
        for rows, values in self.merged_tiles(base):
            merged[rows] = values
        return merged

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yields slices of the rows of `merged_weight` with their values in float32, before they are rounded."""
        weight = self.weight if base is None else base
        return merged_tiles(stored(weight), self.lora_a.weight, self.lora_b.weight, self.scaling)


def merged_tiles(base: list[Tensor], a: Tensor, b: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of the rows of the `stored` weight base `[out, in]`, and of `base + scaling · B A` in float32."""
    a = a.float()
    for rows, values in row_tiles(base, len(b)):
        yield rows, torch.addmm(values.float(), b[rows].float(), a, alpha=scaling)
