"""RMSNorm that keeps no copy of its input: on a CPU in few passes, elsewhere torch's own kernel.

d width of what is normed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """Norm each row of `x [..., d]`.

    On a CPU the backward pass keeps the input itself and a number a row; torch's keeps a copy in float32, too, if the
    input is not: a sixth of all that a layer with LoRA keeps.
    """
    if x.device.type == "cpu":
        return _Norm.apply(x, weight, eps, offset)
    return F.rms_norm(x, x.shape[-1:], weight, eps) if offset == 0 else NotImplemented


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return (x * scale).mul_(_gain(weight, offset)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale  # float32, if not float64
        weight_grad = x_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            x_grad = grad.to(scale.dtype) * _gain(weight, ctx.offset)
            along = torch.linalg.vecdot(x_grad, normed)[..., None].div_(x.shape[-1])
            x_grad = x_grad.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype)
        return x_grad, weight_grad, None, None


def _gain(weight: Tensor, offset: float) -> Tensor:
    return weight if offset == 0 else weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset
