"""One Triton kernel that reads an NF4 weight on a GPU: 8-bit scales and 4-bit codes in, values out, nothing between.

It moves 2.52 bytes a weight, torchao's 13 kernels 33. Optional: `available` says whether it runs. Triton is imported
when that is first asked of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.utils import get_logger

BLOCK, SCALER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a factor."""
BLOCKS = 64  # of each program


@cache
def available(device: torch.device) -> bool:
    """Return whether the kernel runs on `device`: decodes a block, at most once per device and process.

    It takes a GPU, Triton, and the C compiler and Python headers that Triton launches a kernel with.
    """
    if device.type != "cuda":
        return False
    try:
        codes = torch.full((BLOCK // 2,), 0x11, dtype=torch.uint8, device=device)
        scalers = torch.full((1,), 6, dtype=torch.int8, device=device)
        levels = torch.arange(16, dtype=torch.bfloat16, device=device)
        out, factor, mean = levels.new_empty(BLOCK), levels.new_full((1,), 2), levels.new_full((), 4)
        decode_(out, codes, scalers, factor, mean, levels, first_block=0)
        return out.eq(7).all().item()  # 1 * (6 / 2 + 4)
    except Exception as error:  # any of Triton's, of the driver's and of a compiler's
        get_logger().debug("NF4 is decoded without Triton: %r", error)
        return False


def decode_(
    out: Tensor, codes: Tensor, scalers: Tensor, factor: Tensor, mean: Tensor, levels: Tensor, first_block: int
) -> None:
    """Fill `out`, which has m whole blocks, with the blocks from `first_block` on of a weight of n values.

    `codes [n / 2]` uint8, the first of two in the high half; `scalers [n / 64]` int8; `factor [n / 16,384]` and
    `mean []` in one dtype, `levels [16]` in out's (bfloat16, float32 or float16); all of them contiguous. A value is
    `levels[code] * (scaler / factor + mean)`, each of the three operations rounded to the dtype of what it takes, as
    torchao rounds.
    """
    blocks = out.numel() // BLOCK
    parts = (codes, scalers, factor, mean, levels)
    assert out.numel() % BLOCK == 0 and first_block >= 0 and first_block + blocks <= scalers.numel()
    assert codes.numel() == scalers.numel() * BLOCK // 2 and codes.dtype == torch.uint8 and scalers.dtype == torch.int8
    assert factor.numel() * SCALER_BLOCK >= scalers.numel() and mean.numel() == 1 and levels.numel() == 16
    assert out.dtype == levels.dtype and factor.dtype == mean.dtype
    assert all(tensor.is_contiguous() and tensor.device == out.device for tensor in (out, *parts))
    with torch.cuda.device_of(out):  # Triton launches on the current device
        _kernel()[(-(-blocks // BLOCKS),)](out, *parts, first_block, blocks, BLOCK, SCALER_BLOCK, BLOCKS)


@cache
def _kernel() -> Callable[..., Any]:
    global tl, _rounded  # a kernel finds the names it uses among the module's
    import triton
    import triton.language as tl

    _rounded = triton.jit(_rounded)
    return triton.jit(_decode, do_not_specialize=["first_block", "blocks"])


def _decode(
    out,
    codes,
    scalers,
    factor,
    mean,
    levels,
    first_block,
    blocks,
    BLOCK: tl.constexpr,  # noqa: N803 (Triton's custom for constants)
    SCALER_BLOCK: tl.constexpr,  # noqa: N803
    BLOCKS: tl.constexpr,  # noqa: N803
):
    dtype: tl.constexpr = out.dtype.element_ty
    scale_dtype: tl.constexpr = mean.dtype.element_ty
    to = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)  # int64: a stack may have 2^31 values
    block, mask = first_block + to, to < blocks

    scale = tl.load(scalers + block, mask=mask, other=0).to(tl.float32)
    scale = tl.div_rn(scale, tl.load(factor + block // SCALER_BLOCK, mask=mask, other=1).to(tl.float32))
    scale = _rounded(_rounded(scale, scale_dtype) + tl.load(mean).to(tl.float32), scale_dtype)
    scale = _rounded(scale, dtype)[:, None]  # [BLOCKS, 1]

    at = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    pair = tl.load(codes + at, mask=mask[:, None], other=0).to(tl.int32)  # [BLOCKS, BLOCK / 2]
    first = tl.load(levels + (pair >> 4)).to(tl.float32) * scale
    second = tl.load(levels + (pair & 15)).to(tl.float32) * scale
    values = _rounded(tl.interleave(first, second), dtype).to(dtype)  # [BLOCKS, BLOCK]
    tl.store(out + to[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], values, mask=mask[:, None])


def _rounded(x, dtype: tl.constexpr):
    """Round float32 to what `dtype` holds, ties to even; in integers for bfloat16, which Triton's interpreter cuts."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    else:
        x = x.to(dtype).to(tl.float32)
    return x
