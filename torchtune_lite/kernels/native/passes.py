"""What a decoder does between its products, for inference on a CPU, in C++ (passes.cpp): norm, rotation, cache.

b batch, T tokens, h heads, k kv heads, e head width, p rotated pairs.
"""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.kernels.native import build
from torchtune_lite.modules import kv_cache
from torchtune_lite.modules.kv_cache import CachedSequences, KVCache

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
"""Widths of heads that `cached_attention` takes."""


class Heads(ctypes.Structure):
    """The shape of queries, keys or values."""

    _fields_ = [(name, c_int64) for name in ("tokens", "heads", "head_dim", "token_stride", "head_stride")]


class Cache(ctypes.Structure):
    """The memory of a `KVCache`."""

    _fields_ = [("k", c_void_p), ("v", c_void_p), ("slot_stride", c_int64), ("head_stride", c_int64)]


SIGNATURES = {
    "rms_norm": [c_void_p] * 3 + [c_int64] * 2 + [c_float] * 2 + [c_int],
    "rotate": [c_void_p] * 5 + [c_int64] * 2 + [c_int],
    "cached_attention": [c_void_p] * 8 + [c_int64] + [c_float] * 2 + [c_int],
}


def takes(x: Tensor) -> bool:
    """Return whether there are loops for `x`: in inference mode, and not in torch.compile, which cannot look for it."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return False
    return x.is_cpu and x.dtype in DTYPES and _library() is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Any:
    """Compute `modules.norm.rms_norm`."""
    if not takes(x) or weight.dtype != x.dtype:
        return NotImplemented
    x, dim = x.contiguous(), x.shape[-1]
    y = torch.empty_like(x)
    _call("rms_norm", x, y.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // dim, dim, eps, offset)
    return y


def rotate(x: Tensor, rotation: Any) -> Any:
    """Compute `modules.rope.rotate` of one row: `x [1, h, T, e]`, a view of `[1, T, h, e]` as its result is."""
    cos, sin, _ = rotation
    if len(x) != 1 or x.stride(3) != 1 or not cos.is_contiguous() or cos.dtype != x.dtype or not takes(x):
        return NotImplemented
    _, h, t, e = x.shape
    y = torch.empty((1, t, h, e), dtype=x.dtype)
    step = 0 if cos.shape[2] == 1 else cos.shape[3]
    pointers = y.data_ptr(), x.data_ptr(), ctypes.byref(_heads(x)), cos.data_ptr(), sin.data_ptr()
    _call("rotate", x, *pointers, cos.shape[3], step)
    return y.transpose(1, 2)


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    sequences: CachedSequences,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Any:
    """Compute `modules.kv_cache.cached_attention`, in loops for the first sequences, as many as have one new token."""
    n, e = sequences.num_single, q.shape[3]
    if n == 0 or e not in HEAD_DIMS or not takes(q) or q.dtype != cache.k.dtype:
        return NotImplemented
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        return NotImplemented
    options = {"scale": scale, "window": window, "softcap": softcap}
    y = torch.empty((1, q.shape[2], q.shape[1], e), dtype=q.dtype)
    if n < q.shape[2]:
        longer = (x[:, :, n:] for x in (q, k, v))
        y[:, n:] = kv_cache.cached_attention.plain(*longer, cache, sequences.rest, **options).transpose(1, 2)
        q, k, v = (x[:, :, :n] for x in (q, k, v))
    memory = Cache(cache.k.data_ptr(), cache.v.data_ptr(), cache.k.stride(0), cache.k.stride(1))
    shapes = (Heads * 3)(_heads(q), _heads(k), _heads(v))
    pointers = (each.data_ptr() for each in (y, q, k, v))
    places = sequences.slot_of_token.data_ptr(), sequences.positions().data_ptr()
    scale = e**-0.5 if scale is None else scale
    _call("cached_attention", q, *pointers, shapes, ctypes.byref(memory), *places, window or 0, scale, softcap or 0)
    return y.transpose(1, 2)


def _heads(x: Tensor) -> Heads:
    _, h, t, e = x.shape
    return Heads(t, h, e, x.stride(2), x.stride(1))


def _call(name: str, x: Tensor, *args: Any) -> None:
    getattr(_library(), f"{name}_{DTYPES[x.dtype]}")(*args, torch.get_num_threads())


@cache
def _library() -> ctypes.CDLL | None:
    library = build.load(Path(__file__).with_name("passes.cpp")) if build.is_wanted() else None
    if library is not None:
        for name, signature in SIGNATURES.items():
            for dtype in DTYPES.values():
                getattr(library, f"{name}_{dtype}").argtypes = signature
    return library
