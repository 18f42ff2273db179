"""What the modules compute, in the words of the papers."""

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
