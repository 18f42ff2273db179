"""The modules' functions as formulas from the papers."""

from collections.abc import Sequence

import torch
from torch import Tensor


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """Softmax attention with every head's keys and values repeated; `visible [.., s, t]` says what a query sees."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ v


def block_diagonal(lengths: Sequence[int], window: int | None = None) -> Tensor:
    """Visibility for sequences in one row: a token sees its own up to itself, or the last `window` tokens of it."""
    number, position = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)), torch.arange(sum(lengths))
    distance = position[:, None] - position
    return (number[:, None] == number) & (distance >= 0) & (distance < (window or sum(lengths)))
