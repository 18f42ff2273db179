"""Scaled dot-product attention.

b batch, s queries, t keys, h heads, k kv heads, e head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_lite.modules.replaceable import replaceable
from torchtune_lite.utils import to_device

CPU = torch.device("cpu")

QUERY_BLOCK = 512
"""Queries whose scores exist at a time where they are capped."""


class PackedSequences:
    """Sequences of `seq_lens` tokens that lie one after the other in one row; none sees another."""

    def __init__(self, seq_lens: Sequence[int], device: torch.device = CPU) -> None:
        self.seq_lens, self.device, self.max_seqlen = list(seq_lens), device, max(seq_lens)
        self.cu_seqlens = to_device(torch.tensor([0, *self.seq_lens]).cumsum(0).to(torch.int32), device)  # [n + 1]

    def positions(self) -> Tensor:
        """Return the position of each token in its sequence, from 0: `[1, t] int64`."""
        return to_device(torch.cat([torch.arange(n) for n in self.seq_lens])[None], self.device)

    def lengths(self) -> Tensor:
        """Return the length of each token's sequence: `[1, t] int64`."""
        lens = torch.tensor(self.seq_lens)
        return to_device(lens.repeat_interleave(lens)[None], self.device)

    @property
    def longest(self) -> int:
        """The most positions that a sequence has."""
        return self.max_seqlen


@replaceable
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
) -> Tensor:
    """Attend `q [b, h, s, e]` to `k, v [b, k, t, e]`, giving `[b, h, s, e]`; h/k heads share a kv head.

    `mask` is a bool `[b or 1, 1, s, t]`, True where a query may look. Without one, attention is causal and the queries
    are the last s of the t positions, so that a prefix in a KV cache is seen whole. `PackedSequences`, for b = 1 and
    s = t, make it causal within each of them. A query sees the last `window` of these keys, its own included (None:
    all). `scale` multiplies the scores (None: e ** -0.5), and `softcap` c then makes them c · tanh(score / c).
    """
    options = {"dropout": dropout, "scale": scale, "window": window, "softcap": softcap}
    if isinstance(mask, PackedSequences):
        return packed_attention(q, k, v, mask, options)
    s, t = q.shape[2], k.shape[2]
    mask = visible_keys(s, t, mask, window, q.device)
    if softcap is not None:
        return capped_attention(q, k, v, mask, dropout, scale, softcap)
    is_causal = mask is None
    if s == 1:  # sees all keys
        is_causal = False
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def packed_attention(q: Tensor, k: Tensor, v: Tensor, sequences: PackedSequences, options: dict[str, Any]) -> Tensor:
    """Call `attention` with these options for one sequence after the other."""
    parts = zip(*(x.split(sequences.seq_lens, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attention(*part, **options).transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


def visible_keys(s: int, t: int, mask: Tensor | None, window: int | None, device: torch.device) -> Tensor | None:
    """Return which of t keys each of the last s positions sees, `[.., s, t]`.

    None where that is plainly causal and s = t, and where a lone query sees all.
    """
    bounded = window is not None and window < t
    if mask is None and not bounded and s in (1, t):
        return None
    ones = torch.ones(s, t, dtype=torch.bool, device=device)
    visible = ones.tril(t - s) if mask is None else mask
    return visible & ones.triu(t - s - window + 1) if bounded else visible


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float | None, softcap: float
) -> Tensor:
    """Compute attention with capped scores (Gemma 2, arXiv 2408.00118, section 2), a block of queries at a time."""
    s, e, t = *q.shape[2:], k.shape[2]
    q = q.unflatten(1, (k.shape[1], -1)) * (e**-0.5 if scale is None else scale)  # [b, k, h/k, s, e]
    if mask is None:
        mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
    keys, values, mask = k[:, :, None], v[:, :, None], mask.expand(*mask.shape[:-2], s, t)
    blocks = []
    for queries, seen in zip(q.split(QUERY_BLOCK, dim=-2), mask.split(QUERY_BLOCK, dim=-2), strict=True):
        scores = softcap * torch.tanh(queries @ keys.transpose(-1, -2) / softcap)  # [b, k, h/k, s, t]
        seen = seen if seen.dim() == 2 else seen[:, :, None]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
        blocks.append(F.dropout(weights, dropout) @ values)
    return torch.cat(blocks, dim=-2).flatten(1, 2)
