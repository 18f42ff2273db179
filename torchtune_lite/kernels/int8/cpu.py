"""The products with int8 weights in C++ (cpu.cpp), where there is a compiler (`kernels.native`).

Each row of an input gives the same, to the last bit, whatever lies beside it.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from torchtune_lite.kernels.int8.codec import Int8Weight
from torchtune_lite.kernels.native import build

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ACTIVATIONS = ("silu", "gelu_tanh")
PARALLEL = 1 << 15  # weights from which on the threads are worth waking


class Weight(ctypes.Structure):
    """Where an `Int8Weight` lies."""

    _fields_ = [("values", c_void_p), ("scales", c_void_p), ("bias", c_void_p), ("rows", c_int64)]


def takes(x: Tensor) -> bool:
    """Return whether there are loops for `x`."""
    return x.is_cpu and x.dtype in DTYPES and _library() is not None


def linear(x: Tensor, weights: Sequence[Int8Weight]) -> Sequence[Tensor]:
    """Return `x Wᵀ + bias  [..., out]` for each weight, parts of one tensor."""
    dims = [weight.out_dim for weight in weights]
    assert all(weight.in_dim == x.shape[-1] for weight in weights)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], sum(dims))
    _call("linear", x, y, weights, len(dims))
    return y.split(dims, dim=-1) if len(dims) > 1 else [y]


def gated_mlp(x: Tensor, w1: Int8Weight, w2: Int8Weight, w3: Int8Weight, activation: str) -> Tensor:
    """Return `w2(activation(w1 x) · w3 x)` of `x [..., d]`."""
    assert w1.in_dim == w3.in_dim == w2.out_dim == x.shape[-1] and w1.out_dim == w3.out_dim == w2.in_dim
    x = x.contiguous()
    y = torch.empty_like(x)
    _call("mlp", x, y, (w1, w2, w3), ACTIVATIONS.index(activation))
    return y


def _memory(weight: Int8Weight) -> Weight:
    """Return where a weight lies, which is found out once."""
    if not hasattr(weight, "memory"):
        bias = None if weight.bias is None else weight.bias.data_ptr()
        weight.memory = Weight(weight.values.data_ptr(), weight.scales.data_ptr(), bias, weight.out_dim)
    return weight.memory


def _call(name: str, x: Tensor, y: Tensor, weights: Sequence[Int8Weight], option: int) -> None:
    dim = x.shape[-1]
    rows = x.numel() // dim
    threads = torch.get_num_threads() if rows * dim * weights[0].out_dim >= PARALLEL else 1
    function = getattr(_library(), f"{name}_{DTYPES[x.dtype]}")
    memories = (Weight * len(weights))(*map(_memory, weights))
    function(y.data_ptr(), x.data_ptr(), rows, dim, memories, option, threads)


@cache
def _library() -> ctypes.CDLL | None:
    library = build.load(Path(__file__).with_name("cpu.cpp")) if build.is_wanted() else None
    if library is not None:
        for name in ("linear", "mlp"):
            for dtype in DTYPES.values():
                signature = [c_void_p] * 2 + [c_int64] * 2 + [c_void_p] + [c_int] * 2
                getattr(library, f"{name}_{dtype}").argtypes = signature
    return library
