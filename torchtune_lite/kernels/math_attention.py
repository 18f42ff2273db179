"""Attention by products and a softmax of all scores: faster than torch's fused kernel for short texts on a CPU.

b batch, s queries, t keys, h heads, k kv heads, e head width.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.modules.attention import PackedSequences, visible_keys

SHORT = 512
"""Positions up to which 16-bit attention on a CPU is faster so: 1.3 to 4 times, measured."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | PackedSequences | None = None,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Any:
    """Compute `modules.attention` in 16 bits on a CPU, for up to `SHORT` keys and without dropout."""
    (b, h, s, e), kv_heads, t = q.shape, *k.shape[1:3]
    suited = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and s > 1 and t <= SHORT
    if not suited or dropout or isinstance(mask, PackedSequences):
        return NotImplemented
    visible = visible_keys(s, t, mask, window, q.device)
    visible = torch.ones(1, s, t, dtype=torch.bool).tril() if visible is None else visible.view(-1, s, t)
    bias = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, -torch.inf)
    bias = bias.repeat(1, h // kv_heads, 1)  # [b or 1, h/k s, t]
    if len(bias) > 1:
        bias = bias.repeat_interleave(kv_heads, dim=0)  # [b k, h/k s, t]
    q = q.reshape(b * kv_heads, -1, e)  # [b k, h/k s, e]
    scale = e**-0.5 if scale is None else scale
    return _Attention.apply(q, k.flatten(0, 1), v.flatten(0, 1), bias, scale, softcap).view(b, h, s, e)


class _Attention(torch.autograd.Function):
    """`softmax(scale q kᵀ + bias) v` of `q [n, s, e]` and `k, v [n, t, e]`, with one `[n, s, t]` a pass, in place.

    With a soft-cap c the scores are c · tanh(score / c), which the backward pass recomputes.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, softcap: float | None) -> Tensor:
        if softcap is None:
            weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
        else:
            weights = _capped(q, k, scale, softcap).mul_(softcap).add_(bias)
        torch.softmax(weights, dim=-1, out=weights)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.softcap = scale, softcap
        return weights @ v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        v_grad = weights.transpose(1, 2) @ grad
        scores_grad = grad @ v.transpose(1, 2)
        torch._softmax_backward_data(scores_grad, weights, -1, grad.dtype, grad_input=scores_grad)
        if ctx.softcap is not None:
            tanh = _capped(q, k, ctx.scale, ctx.softcap)
            scores_grad.addcmul_(scores_grad, tanh.square_(), value=-1)
        scaled = partial(torch.baddbmm, grad.new_zeros(()), beta=0, alpha=ctx.scale)
        return scaled(scores_grad, k), scaled(scores_grad.transpose(1, 2), q), v_grad, None, None, None


def _capped(q: Tensor, k: Tensor, scale: float, softcap: float) -> Tensor:
    """Return `tanh(score / c)  [n, s, t]`."""
    return torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale / softcap).tanh_()
