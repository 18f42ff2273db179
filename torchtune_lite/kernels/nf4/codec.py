"""NF4 on plain tensors: weights → 4-bit codes with 8-bit scales, and back, in memory that does not grow with them.

The format is torchao's, of QLoRA (arXiv 2305.14314, section 3): 64 weights share the largest of their magnitudes as
scale, a code is the nearest of 16 levels of that scale, and the scales of 256 blocks, less the mean of all, share a
factor that makes them int8 (double quantisation): 4.127 bits a weight. torchao builds [n, 16] distances to find a code
and six temporaries to read one; here both are a look-up in a table, with bit for bit the same result, by torch's
operators or, where they can be built, by compiled loops (`cpu`, `triton`).
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchtune_lite.kernels.nf4 import cpu, triton

BLOCK, SCALER_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a factor."""
CHUNK = 1 << 18  # values quantised at a time
TILE = 1 << 19  # values read at a time on a CPU: they stay in its cache until they are multiplied
ZERO = 7  # the code of 0.0
LEVELS = (
    *(-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0),
    *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0),
)


class NF4Weight(NamedTuple):
    """The tensors of a quantised weight of n values, by torchao's names."""

    quantized_data: Tensor  # [n / 2] uint8, the first of two codes in the high half
    quantized_scalers: Tensor  # [n / 64] int8
    quantization_factor: Tensor  # [n / 16,384], in the `scale_dtype` of what was quantised
    scaler_mean: Tensor  # [], in the same
    nf4: Tensor  # [16], the levels, in the dtype that was quantised


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the scales of a weight are quantised in: its own, but float32 for float16.

    There a factor above 65,504 would be infinite: where 256 scales are within 0.002 of their mean, as those of small
    weights are, torchao loses them.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def blank(num_values: int, dtype: torch.dtype, device: torch.device) -> NF4Weight:
    """Make the parts of a weight that is still to come."""
    blocks = num_values // BLOCK
    return NF4Weight(
        torch.empty(num_values // 2, dtype=torch.uint8, device=device),
        torch.empty(blocks, dtype=torch.int8, device=device),
        torch.empty(blocks // SCALER_BLOCK, dtype=scale_dtype(dtype), device=device),
        torch.empty((), dtype=scale_dtype(dtype), device=device),
        levels(dtype, device),
    )


def encode(weight: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> NF4Weight:
    """Quantise `weight`, of a multiple of 16,384 values; ValueError where one of them is NaN or infinite.

    Of a weight whose other values lie elsewhere, `gather` returns the scales of all blocks, of which it is given those
    here: their mean is one.

    Differs from torchao where that divides by zero: a block of zeros gets the code of zero, not of -1, so that it
    decodes to zeros, and 256 equal scales get a factor of 1, not infinity (both decode to their mean); and in float16,
    see `scale_dtype`.
    """
    values = weight.detach().reshape(-1)
    parts = blank(values.numel(), weight.dtype, weight.device)
    scales = torch.empty(values.numel() // BLOCK, dtype=scale_dtype(weight.dtype), device=weight.device)
    for start in range(0, values.numel(), CHUNK):
        blocks = values[start : start + CHUNK].view(-1, BLOCK)
        codes, absmax = _encode_blocks(blocks)
        parts.quantized_data[start // 2 :][: codes.numel()] = codes
        scales[start // BLOCK :][: absmax.numel()] = absmax
    all_scales = gather(scales) if gather else scales
    if not all_scales.isfinite().all():
        raise ValueError("holds NaN or infinity")
    parts.scaler_mean.copy_(all_scales.mean())
    scales = (scales - parts.scaler_mean).view(-1, SCALER_BLOCK)
    factor = 256 / (2 * scales.abs().amax(1))
    parts.quantization_factor.copy_(torch.where(factor.isfinite(), factor, 1.0))
    scaled = (scales * parts.quantization_factor[:, None]).round().clamp(-128, 127)
    parts.quantized_scalers.copy_(scaled.flatten())
    return parts


def _encode_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the packed codes `[32 blocks]` and the scales `[blocks]` of `blocks [blocks, 64]`."""
    if blocks.dtype == torch.bfloat16 and blocks.device.type == "cpu" and cpu.available():
        return cpu.encode(blocks, code_table(blocks.device))
    absmax = blocks.abs().amax(1)
    ratios = (blocks / absmax[:, None]).view(-1)
    if ratios.dtype == torch.bfloat16:
        codes = code_table(ratios.device).index_select(0, ratios.view(torch.uint16).to(torch.int32))
    else:
        codes = _nearest(ratios)
    return codes[::2] << 4 | codes[1::2], absmax


def _nearest(ratios: Tensor) -> Tensor:
    """Return the code of each of `ratios`; that of zero for NaN, which a block of zeros gives."""
    codes = torch.bucketize(ratios, thresholds(ratios.dtype, ratios.device), right=True, out_int32=True)
    return codes.masked_fill_(ratios.isnan(), ZERO).to(torch.uint8)


def block_scales(parts: NF4Weight) -> Tensor:
    """Return the scale of each block `[n / 64]` in the dtype of the weight, rounded twice as torchao rounds."""
    scales = parts.quantized_scalers.view(-1, SCALER_BLOCK) / parts.quantization_factor[:, None]
    return scales.flatten().to(parts.scaler_mean.dtype).add_(parts.scaler_mean).to(parts.nf4.dtype)


class Tiles:
    """Decodes a quantised weight `[rows, cols]` tile by tile: about `TILE` values each on a CPU, elsewhere all at once.

    A tile is valid until the next is made, in the same memory.
    """

    def __init__(self, parts: NF4Weight, rows: int) -> None:
        self._parts, self._rows, self._cols = parts, rows, parts.quantized_data.numel() * 2 // rows
        self._in_tiles = parts.quantized_data.device.type == "cpu"
        self._scales = block_scales(parts) if self._in_tiles else None
        self._buffer: Tensor | None = None

    def by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows with their values `[rows of the tile, cols]`."""
        if not self._in_tiles:
            yield slice(0, self._rows), decode(self._parts, (self._rows, self._cols))
            return
        group = BLOCK // math.gcd(self._cols, BLOCK)  # so many rows are whole blocks
        for rows in _slices(self._rows, max(TILE // self._cols // group, 1) * group):
            values = self._decode(slice(rows.start // group, rows.stop // group), slice(None), group * self._cols)
            yield rows, values.view(-1, self._cols)

    def by_cols(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the columns with their values `[rows, columns of the tile]`."""
        if not self._in_tiles or self._cols % BLOCK:  # blocks run over the ends of rows
            yield slice(0, self._cols), decode(self._parts, (self._rows, self._cols))
            return
        for cols in _slices(self._cols, max(TILE // self._rows // BLOCK, 1) * BLOCK):
            yield cols, self._decode(slice(None), cols, self._cols)

    def _decode(self, rows: slice, cols: slice, width: int) -> Tensor:
        """Decode a part of the weight seen as `[values / width, width]`, `width` a multiple of a block."""
        codes = self._parts.quantized_data.view(-1, width // 2)[rows, _divided(cols, 2)]
        scales = self._scales.view(-1, width // BLOCK)[rows, _divided(cols, BLOCK)]
        if self._buffer is None:
            self._buffer = scales.new_empty(codes.numel() * 2)  # the first tile is the largest
        out = self._buffer[: codes.numel() * 2].view(len(codes), -1)
        _decode_(out, codes, scales, self._parts.nf4)
        return out


def _slices(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _divided(span: slice, by: int) -> slice:
    return span if span.start is None else slice(span.start // by, span.stop // by)


def _decode_(out: Tensor, codes: Tensor, scales: Tensor, nf4: Tensor) -> None:
    """Fill `out [m, n]` from `codes [m, n / 2]` and `scales [m, n / 64]`, whose rows may lie apart."""
    if out.device.type == "cpu" and cpu.supports(out.dtype) and cpu.available():
        cpu.decode_(out, codes, scales, nf4)
        return
    words = codes.view(torch.uint16) if out.itemsize == 2 else codes  # as many codes as 8 bytes of values take
    index = words.to(torch.int32).view(-1)
    torch.index_select(value_table(out.dtype, out.device), 0, index, out=out.view(-1).view(torch.int64))
    out.view(-1, BLOCK).mul_(scales.reshape(-1, 1))


def decode(parts: NF4Weight, shape: tuple[int, ...]) -> Tensor:
    """Return the values of a quantised weight of this shape."""
    out = torch.empty(shape, dtype=parts.nf4.dtype, device=parts.nf4.device)
    if triton.available(out.device):
        triton.decode_(out, *parts, first_block=0)
        return out
    values, codes = out.view(-1, BLOCK), parts.quantized_data.view(-1, BLOCK // 2)
    scales = block_scales(parts)[:, None]
    for blocks in _slices(len(values), TILE // BLOCK):
        _decode_(values[blocks], codes[blocks], scales[blocks], parts.nf4)
    return out


@cache
def levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 16 levels."""
    return torch.tensor(LEVELS, dtype=dtype, device=device)


@cache
def thresholds(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 15 least values that have the next code, each between two levels, in the arithmetic of `dtype`.

    Found by bisection: a code is the level of least rounded distance, and of two as near the lower.
    """
    low, high = levels(dtype, device)[:-1].clone(), levels(dtype, device)[1:].clone()
    for _ in range(32):
        middle = (low + high) / 2
        upper = middle - levels(dtype, device)[:-1] > levels(dtype, device)[1:] - middle
        low, high = torch.where(upper, low, middle), torch.where(upper, middle, high)
    return high


@cache
def code_table(device: torch.device) -> Tensor:
    """Return the code of each bfloat16 `[65536] uint8`, by its bits."""
    return _nearest(torch.arange(65536, dtype=torch.int32, device=device).to(torch.uint16).view(torch.bfloat16))


@cache
def value_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 8 bytes of levels, as int64, for the bytes of their codes: one byte in float32, two in 16 bits."""
    codes = torch.arange(256, device=device)
    pairs = levels(dtype, device)[torch.stack([codes >> 4, codes & 15], 1)]  # [256, 2], first of two codes first
    if dtype.itemsize == 2:
        words = torch.arange(65536, device=device)
        pairs = torch.stack([pairs[words & 255], pairs[words >> 8]], 1)  # [65536, 2, 2], little-endian
    return pairs.contiguous().view(len(pairs), -1).view(torch.int64).view(-1)
