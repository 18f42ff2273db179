"""Attention of packed sequences in one kernel of a GPU, which is told where each ends: FlashAttention-2.

Source: arXiv 2307.08691. b batch, t tokens, h heads, k kv heads, e head width.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchtune_lite.modules.attention import PackedSequences

MODULE = "torch.nn.attention.varlen"  # from torch 2.10 on


class Kernel(NamedTuple):
    """torch's kernel, and which of its arguments this version of torch has."""

    attend: Callable[..., Tensor]
    arguments: frozenset[str]


_kernels: dict[torch.device, Kernel | None] = {}


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
    """Compute `modules.attention.attention` of packed sequences, where the kernel is there and takes them."""
    if not isinstance(mask, PackedSequences) or dropout or softcap is not None:
        return NotImplemented
    kernel = find_kernel(q.device)
    if kernel is None or not fits(q.dtype, q.shape[-1]):
        return NotImplemented
    options: dict[str, Any] = {}
    if "window_size" in kernel.arguments:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        return NotImplemented
    if scale is not None:
        if "scale" not in kernel.arguments:
            return NotImplemented
        options["scale"] = scale
    if "enable_gqa" in kernel.arguments:
        options["enable_gqa"] = True
    elif q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [t, h or k, e]
    ends, longest = mask.cu_seqlens, mask.max_seqlen
    return kernel.attend(q, k, v, ends, ends, longest, longest, **options).transpose(0, 1)[None]


def find_kernel(device: torch.device) -> Kernel | None:
    """Return the kernel where `device` runs it and torch has it.

    It is to be called once before a layer is compiled: importing the kernel breaks a graph.
    """
    if device not in _kernels:
        _kernels[device] = _load() if runs_flash(device) and find_spec(MODULE) else None
    return _kernels[device]


def _load() -> Kernel:
    attend = import_module(MODULE).varlen_attn  # which imports torch's compiler
    return Kernel(attend, frozenset(signature(attend).parameters))


def runs_flash(device: torch.device) -> bool:
    """Return whether `device` runs FlashAttention-2: a GPU of compute capability 8.0 or more (Ampere)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def fits(dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether FlashAttention-2 takes heads of this width and dtype, forward and backward, on any GPU it runs on.

    Widths between 192 and 256, which not all of these differentiate, are left out.
    """
    return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and (head_dim <= 192 or head_dim == 256)
