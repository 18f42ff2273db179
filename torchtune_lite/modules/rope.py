"""Rotary position embeddings (RoPE, arXiv 2104.09864), and how they stretch to longer texts.

b batch, s sequence, h heads, e head width, p rotated pairs of a head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchtune_lite.modules.config import RopeScaling
from torchtune_lite.modules.replaceable import replaceable


class Rotation(NamedTuple):
    """Cosine and sine of each pair's angle, `[b or 1, 1, s, p]` each, and what queries are multiplied by."""

    cos: Tensor
    sin: Tensor
    query_scale: Tensor | None = None  # [b or 1, 1, s, 1]


@replaceable
def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + p) of each head of `x [b, h, s, e]` by their angles; what lies beyond 2p stays.

    This is the half-split layout of Hugging Face. The result has the dtype of x.
    """
    cos, sin, _ = rotation
    x1, x2, rest = x.tensor_split((cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], dim=-1).to(x.dtype)


class RotaryPositionalEmbeddings(nn.Module):
    """The rotation of positions: pair i turns by position · base^(-i/p).

    Angles are computed in float32 once per forward pass and shared by all layers; there is no table to size or to load.
    `scaling` changes the frequencies for long texts; `max_seq_len` is the length from which its kind `dynamic` does.
    """

    def __init__(self, rotary_dim: int, base: float, scaling: RopeScaling | None = None, max_seq_len: int = 0) -> None:
        super().__init__()
        self.rotary_dim, self.base, self.scaling, self.max_seq_len = rotary_dim, base, scaling, max_seq_len

    def forward(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor) -> Rotation:
        """Return the rotation of `positions [b or 1, s] int64`.

        `lengths [b or 1, 1 or s] int64` is the length of the text that each token belongs to, on which the kinds
        `dynamic` and `longrope` depend: a text is then rotated as it would be alone, whatever lies beside it.
        """
        frequencies = self.frequencies(lengths.float())  # [p], or [b or 1, 1 or s, p]
        angles = (positions[..., None].float() * frequencies)[:, None]
        amplitude = self.scaling.amplitude if self.scaling else 1.0
        query_scale = None
        if self.scaling and self.scaling.query_beta:
            laps = (positions // self.scaling.original_len).float()
            query_scale = (1 + self.scaling.query_beta * laps.log1p()).to(dtype)[:, None, :, None]
        return Rotation((angles.cos() * amplitude).to(dtype), (angles.sin() * amplitude).to(dtype), query_scale)

    def frequencies(self, lengths: Tensor) -> Tensor:
        """Return the angle by which each pair turns from one position to the next, in float32."""
        scaling = self.scaling
        exponents = torch.arange(0, self.rotary_dim, 2, device=lengths.device, dtype=torch.float32) / self.rotary_dim
        if scaling is not None and scaling.kind == "dynamic":
            return self._dynamic_base(lengths)[..., None] ** -exponents
        f = self.base**-exponents
        return f if scaling is None else SCALED[scaling.kind](self, f, lengths, scaling)

    def turns_alike(self, one: int, other: int) -> bool:
        """Whether texts of these two lengths have the same rotation, so that they can share keys."""
        if one == other or self.scaling is None or not self.scaling.depends_on_length:
            return True
        return torch.equal(*(self.frequencies(torch.tensor([float(length)])) for length in (one, other)))

    def _dynamic_base(self, lengths: Tensor) -> Tensor:
        """Stretch the base for texts beyond max_seq_len ("NTK-aware dynamic scaling", as in transformers)."""
        factor, dim = self.scaling.factor, self.rotary_dim
        stretch = factor * lengths.clamp(min=self.max_seq_len) / self.max_seq_len - (factor - 1)
        return self.base * stretch ** (dim / (dim - 2))


def linear(rope: RotaryPositionalEmbeddings, f: Tensor, lengths: Tensor, scaling: RopeScaling) -> Tensor:
    """Interpolate positions (arXiv 2306.15595)."""
    return f / scaling.factor


def llama3(rope: RotaryPositionalEmbeddings, f: Tensor, lengths: Tensor, scaling: RopeScaling) -> Tensor:
    """Interpolate low frequencies only, with a smooth passage (Meta's Llama 3.1 code)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((scaling.original_len * f / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return f * (kept + (1 - kept) / scaling.factor)


def yarn(rope: RotaryPositionalEmbeddings, f: Tensor, lengths: Tensor, scaling: RopeScaling) -> Tensor:
    """Interpolate the dimensions that turn slowly, with a ramp to those that turn fast (YaRN, arXiv 2309.00071)."""
    dim = rope.rotary_dim

    def dimension(turns: float) -> float:
        """Return the dimension that turns so many times over original_len positions."""
        return dim * math.log(scaling.original_len / (2 * math.pi * turns)) / (2 * math.log(rope.base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(dim // 2, device=f.device, dtype=torch.float32)
    ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return f * (1 - ramp) + f / scaling.factor * ramp


def longrope(rope: RotaryPositionalEmbeddings, f: Tensor, lengths: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide each frequency by its own factor, another one in long texts (LongRoPE, arXiv 2402.13753)."""
    short, long = (torch.tensor(factors, device=f.device) for factors in (scaling.short_factors, scaling.long_factors))
    return f / torch.where((lengths > scaling.original_len)[..., None], long, short)


SCALED = {function.__name__: function for function in (linear, llama3, yarn, longrope)}
