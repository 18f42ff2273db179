"""Scaled dot-product attention, and the choice between its paths.

b batch, s queries, t keys, h heads, k kv heads, e head width.
"""

from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_lite.utils import to_device

CPU = torch.device("cpu")
SHORT = 512
"""Positions up to which 16-bit attention on a CPU is faster written out than fused: 1.3 to 4 times, measured."""

VARLEN = "torch.nn.attention.varlen"  # from torch 2.10 on


class Documents:
    """Documents of `lengths` tokens that lie one after the other in a row of a batch, none of which sees another.

    Made outside the graphs of torch.compile, to which only `ends` and `longest` are known: the number of documents and
    their lengths change with each batch.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device = CPU) -> None:
        self.lengths, self.device = list(lengths), device
        self.kernel = _varlen_kernel(device)
        if self.kernel is not None:
            ends = torch.tensor([0, *self.lengths]).cumsum(0)
            self.ends, self.longest = to_device(ends.to(torch.int32), device), max(self.lengths)  # [n + 1]

    def positions(self) -> Tensor:
        """Counts the tokens of each document from 0: `[1, t] int64`."""
        return to_device(torch.cat([torch.arange(n) for n in self.lengths])[None], self.device)


@cache  # asked for in every forward pass
def _varlen_kernel(device: torch.device) -> partial | None:
    """Finds FlashAttention-2 for documents, where `device` runs it and torch has it: from 2.10 on."""
    if not runs_flash(device) or not find_spec(VARLEN):
        return None
    varlen_attn = import_module(VARLEN).varlen_attn  # which imports torch's compiler
    known = signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return partial(varlen_attn, **causal, **{"enable_gqa": True} if "enable_gqa" in known else {})


def runs_flash(device: torch.device) -> bool:
    """Tells whether `device` runs FlashAttention-2: a GPU of compute capability 8.0 or more (Ampere)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def fits_flash(dtype: torch.dtype, width: int) -> bool:
    """Tells whether FlashAttention-2 takes heads of `width` in `dtype`, forward and backward, on any GPU that runs it.

    Widths between 192 and 256, which not all of these differentiate, are left out.
    """
    return dtype in (torch.float16, torch.bfloat16) and width % 8 == 0 and (width <= 192 or width == 256)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Documents | None = None, dropout: float = 0.0) -> Tensor:
    """Attends `q [b, h, s, e]` to `k, v [b, k, t, e]`, giving `[b, h, s, e]`; h/k heads share a kv head.

    `mask` is a bool `[b or 1, 1, s, t]`, True where a query may look. Without one, attention is causal and the queries
    are the last s of the t positions, so that a prefix in a KV cache is seen whole. `Documents`, for b = 1 and s = t,
    make it causal within each of them; no mask is built.
    """
    if isinstance(mask, Documents):
        one_kernel = mask.kernel is not None and fits_flash(q.dtype, q.shape[-1]) and not dropout
        return _varlen(q, k, v, mask) if one_kernel else _one_by_one(q, k, v, mask, dropout)
    s, t = q.shape[2], k.shape[2]
    causal = mask is None
    if s == 1:  # a lone query sees all positions
        causal = False
    elif causal and s < t:
        causal, mask = False, torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
    if q.device.type == "cpu" and q.dtype != torch.float32 and s > 1 and t <= SHORT and not dropout:
        return _written_out(q, k, v, mask)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Computes `attention` by products and a softmax of all `[s, t]` scores, which are kept for the backward pass."""
    (b, h, s, e), kv_heads, t = q.shape, *k.shape[1:3]
    mask = torch.ones(1, s, t, dtype=torch.bool, device=q.device).tril() if mask is None else mask.view(-1, s, t)
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    bias = bias.repeat(1, h // kv_heads, 1)  # [b or 1, h/k s, t]
    if len(bias) > 1:
        bias = bias.repeat_interleave(kv_heads, dim=0)  # [b k, h/k s, t]
    q = q.reshape(b * kv_heads, -1, e)  # [b k, h/k s, e]
    return _WrittenOut.apply(q, k.flatten(0, 1), v.flatten(0, 1), bias).view(b, h, s, e)


class _WrittenOut(torch.autograd.Function):
    """`softmax(q kᵀ / √e + bias) v` of `q [n, s, e]` and `k, v [n, t, e]`, with one `[n, s, t]` a pass, in place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
        torch.softmax(weights, dim=-1, out=weights)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        v_grad = weights.transpose(1, 2) @ grad
        scores_grad = grad @ v.transpose(1, 2)
        torch._softmax_backward_data(scores_grad, weights, -1, grad.dtype, grad_input=scores_grad)
        scaled = partial(torch.baddbmm, grad.new_zeros(()), beta=0, alpha=q.shape[-1] ** -0.5)
        return scaled(scores_grad, k), scaled(scores_grad.transpose(1, 2), q), v_grad, None


def keep_documents_out_of_graphs() -> None:
    """Has torch.compile leave attention document by document as it is, rather than make a graph for each lengths."""
    global _one_by_one
    _one_by_one = torch.compiler.disable(_one_by_one)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, documents: Documents, dropout: float) -> Tensor:
    """Calls `attention` once a document: on a CPU 3 times as fast as one call with a mask, measured."""
    parts = zip(*(x.split(documents.lengths, dim=2) for x in (q, k, v)), strict=True)
    outputs = [attention(*part, dropout=dropout).transpose(1, 2) for part in parts]  # [1, n, h, e]
    return torch.cat(outputs, dim=1).transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Attends in one kernel that is told where the documents end."""
    if "enable_gqa" not in documents.kernel.keywords and q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [t, h or k, e]
    y = documents.kernel(q, k, v, documents.ends, documents.ends, documents.longest, documents.longest)
    return y.transpose(0, 1)[None]
