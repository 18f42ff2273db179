"""RMSNorm (arXiv 1910.07467) that keeps no copy of its input.

d width of what is normed.
"""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's `nn.RMSNorm` over the last dimension, on a CPU in few passes.

    Computes in float32 (float64 in float64) and rounds once. The backward pass keeps the input itself and a number a
    row; torch's on a CPU keeps a copy in float32, too, if the input is not: a sixth of all that a layer with LoRA
    keeps.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Norms each row of `x [..., d]`."""
        return _Norm.apply(x, self.weight, self.eps) if x.device.type == "cpu" else super().forward(x)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale  # float32, if not float64
        weight_grad = x_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            x_grad = grad.to(scale.dtype) * weight
            along = torch.linalg.vecdot(x_grad, normed)[..., None].div_(x.shape[-1])
            x_grad = x_grad.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype)
        return x_grad, weight_grad, None
