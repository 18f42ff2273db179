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
    """The memory of an `Int8Weight` and its bias."""

    _fields_ = [("values", c_void_p), ("scales", c_void_p), ("bias", c_void_p), ("rows", c_int64)]


def takes(x: Tensor) -> bool:
    """Return whether there are loops for `x`."""
    return x.is_cpu and x.dtype in DTYPES and _library() is not None


def linear(x: Tensor, weights: Sequence[tuple[Int8Weight, Tensor | None]]) -> Sequence[Tensor]:
    """Return `x Wᵀ + bias  [..., out]` for each weight and bias, parts of one tensor."""
    dims = [weight.out_dim for weight, _ in weights]
    assert all(weight.in_dim == x.shape[-1] for weight, _ in weights)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], sum(dims))
    structs, kept = _structs(weights)
    _call("linear", x, y, structs, len(dims))
    del kept
    return y.split(dims, dim=-1)


def gated_mlp(x: Tensor, w1: Int8Weight, w2: Int8Weight, w3: Int8Weight, activation: str) -> Tensor:
    """Return `w2(activation(w1 x) · w3 x)` of `x [..., d]`."""
    assert w1.in_dim == w3.in_dim == w2.out_dim == x.shape[-1] and w1.out_dim == w3.out_dim == w2.in_dim
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    structs, _ = _structs([(w1, None), (w2, None), (w3, None)])
    _call("mlp", x, y, structs, ACTIVATIONS.index(activation))
    return y


def _structs(weights: Sequence[tuple[Int8Weight, Tensor | None]]) -> tuple[ctypes.Array, list[Tensor]]:
    """Return what the loops read, and what has to be kept for as long: biases in float32."""
    biases = [None if bias is None else bias.float() for _, bias in weights]
    structs = (Weight * len(weights))()
    for struct, (weight, _), bias in zip(structs, weights, biases, strict=True):
        struct.values, struct.scales, struct.rows = weight.values.data_ptr(), weight.scales.data_ptr(), weight.out_dim
        struct.bias = None if bias is None else bias.data_ptr()
    return structs, biases


def _call(name: str, x: Tensor, y: Tensor, structs: ctypes.Array, option: int) -> None:
    dim = x.shape[-1]
    rows = x.numel() // dim
    threads = torch.get_num_threads() if rows * dim * structs[0].rows >= PARALLEL else 1
    function = getattr(_library(), f"{name}_{DTYPES[x.dtype]}")
    function(y.data_ptr(), x.data_ptr(), rows, dim, structs, option, threads)


@cache
def _library() -> ctypes.CDLL | None:
    library = build.load(Path(__file__).with_name("cpu.cpp")) if build.is_wanted() else None
    if library is not None:
        for name in ("linear", "mlp"):
            for dtype in DTYPES.values():
                signature = [c_void_p] * 2 + [c_int64] * 2 + [c_void_p] + [c_int] * 2
                getattr(library, f"{name}_{dtype}").argtypes = signature
    return library
