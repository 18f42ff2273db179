"""NF4's two loops in C++ (cpu.cpp), where there is a compiler (`kernels.native`)."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from torchtune_lite.kernels.native import build

BLOCK = 64  # weights that share a scale
PARALLEL = 1 << 18  # weights from which on the threads are worth waking
DTYPES = {torch.bfloat16: "decode_bfloat16", torch.float32: "decode_float32"}


def available() -> bool:
    """Return whether the functions of this module can be called; builds them where nobody has."""
    return build.is_wanted() and _library() is not None


def supports(dtype: torch.dtype) -> bool:
    """Return whether `decode_` gives values of `dtype`."""
    return dtype in DTYPES


def decode_(out: Tensor, codes: Tensor, scales: Tensor, levels: Tensor) -> None:
    """Set `out [m, n]` to `levels[code] * scale`, rounded as torch's product is.

    `codes [m, n / 2]` uint8, the first of two in the high half; `scales [m, n / 64]` and `levels [16]` in out's dtype.
    Rows may lie apart, as those of a tile do. Runs on torch's number of threads, each with rows of its own.
    """
    rows, cols = out.shape
    blocks = cols // BLOCK
    assert out.dtype == scales.dtype == levels.dtype and codes.dtype == torch.uint8 and cols % BLOCK == 0
    assert codes.shape == (rows, cols // 2) and scales.shape == (rows, blocks) and levels.shape == (16,)
    assert all(tensor.device.type == "cpu" for tensor in (out, codes, scales, levels)) and levels.is_contiguous()
    assert all(tensor.stride(1) == 1 or tensor.shape[1] <= 1 for tensor in (out, codes, scales))
    pointers = (tensor.data_ptr() for tensor in (out, codes, scales, levels))
    strides = (tensor.stride(0) for tensor in (out, codes, scales))
    getattr(_library(), DTYPES[out.dtype])(*pointers, rows, blocks, *strides, _threads(out))


def encode(blocks: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes `[32 m]` uint8, two to a byte, and the largest magnitudes `[m]` of `blocks [m, 64]` bfloat16.

    `table [65536]` uint8 has the code of each bfloat16 by its bits; what is looked up is `weight / magnitude`, rounded
    to bfloat16. A block of zeros gets code 7. A magnitude is not finite where a weight is not.
    """
    assert blocks.dtype == torch.bfloat16 and blocks.shape[1:] == (BLOCK,) and blocks.is_contiguous()
    assert table.dtype == torch.uint8 and table.shape == (1 << 16,) and table.is_contiguous()
    assert blocks.device.type == table.device.type == "cpu"
    codes = torch.empty(len(blocks) * BLOCK // 2, dtype=torch.uint8)
    absmax = torch.empty(len(blocks), dtype=torch.bfloat16)
    pointers = (tensor.data_ptr() for tensor in (codes, absmax, blocks, table))
    _library().encode_bfloat16(*pointers, len(blocks), _threads(blocks))
    return codes, absmax


def _threads(weights: Tensor) -> int:
    return torch.get_num_threads() if weights.numel() >= PARALLEL else 1


@cache
def _library() -> ctypes.CDLL | None:
    library = build.load(Path(__file__).with_name("cpu.cpp"))
    if library is None:
        return None
    for name in DTYPES.values():
        getattr(library, name).argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5 + [ctypes.c_int]
    library.encode_bfloat16.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int]
    return library
