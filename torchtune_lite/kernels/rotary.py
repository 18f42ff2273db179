"""The rotation of queries and keys in few passes, whose backward pass turns the gradient back."""

from typing import Any

import torch
from torch import Tensor


def rotate(x: Tensor, rotation: Any) -> Tensor:
    """Turn the pairs of each head of `x [b, h, s, e]` by their angles; torch.compile does so by itself."""
    if torch.compiler.is_compiling():
        return NotImplemented
    return _Rotate.apply(x, rotation.cos, rotation.sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    p = cos.shape[-1]
    y = torch.empty_like(x)
    x1, x2, y1, y2 = x[..., :p], x[..., p : 2 * p], y[..., :p], y[..., p : 2 * p]
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=sign)
    if 2 * p < x.shape[-1]:
        y[..., 2 * p :] = x[..., 2 * p :]
    return y
