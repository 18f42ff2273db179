"""LoRA: low-rank adaptation of a frozen projection (Hu et al., arXiv 2106.09685).

r rank; W [out, in], A [r, in], B [out, r].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft.nf4 import dequantize, quantize


class LoRALinear(nn.Module):
    """A frozen projection with a trained update: `y = W x + (alpha / r) · B A dropout(x)` (section 4.1).

    A starts as U(-1/√in, 1/√in) and B as zero, so that training starts at the base model (the authors' code; the paper
    says Gaussian). `dropout` 0.0 is off. With `quantize_base`, W is kept in NF4 (QLoRA) and dequantised in each pass;
    `in_dim · out_dim` must then be divisible by 16,384, else ValueError.
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

    def init_adapter(self) -> None:
        """Makes fresh adapter parameters on the device and in the dtype of the base weight."""
        for linear in (self.lora_a, self.lora_b):
            linear.to_empty(device=self.weight.device).to(self.weight.dtype)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)

    def adapter_params(self) -> list[str]:
        """Names of the trained parameters within this module."""
        return ["lora_a.weight", "lora_b.weight"]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., in]` to `[..., out]`."""
        return F.linear(x, self.weight) + self._update(x)

    def _update(self, x: Tensor) -> Tensor:
        return self.scaling * self.lora_b(self.lora_a(self.dropout(x)))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Gives `W + (alpha / r) · B A [out, in]`, summed in float32, in W's dtype; an NF4 W is dequantised."""
        return self._merged_float32().to(self.weight.dtype)

    def _merged_float32(self) -> Tensor:
        update = self.lora_b.weight.float() @ self.lora_a.weight.float()
        return dequantize(self.weight).float() + self.scaling * update
