"""Scaled dot-product attention, and the choice between its paths.

b batch, s queries, t keys, h heads, k kv heads, e head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512
"""Positions up to which 16-bit attention on a CPU is faster written out than fused: 1.3 to 4 times, measured."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Attends `q [b, h, s, e]` to `k, v [b, k, t, e]`, giving `[b, h, s, e]`; h/k heads share a kv head.

    `mask` is a bool `[b or 1, 1, s, t]`, True where a query may look. Without one, attention is causal and the queries
    are the last s of the t positions, so that a prefix in a KV cache is seen whole.
    """
    s, t = q.shape[2], k.shape[2]
    if mask is None and 1 < s < t:
        mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
    if q.device.type == "cpu" and q.dtype != torch.float32 and s > 1 and t <= SHORT:
        return _written_out(q, k, v, mask, dropout)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and s > 1, enable_gqa=grouped
    )


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Computes `attention` by products and a softmax of all `[s, t]` scores, which are kept for the backward pass."""
    s, t, e = q.shape[2], k.shape[2], q.shape[3]
    if mask is None:
        mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril()
    q = (q * e**-0.5).unflatten(1, (k.shape[1], -1))  # [b, k, h/k, s, e]
    scores = q @ k[:, :, None].transpose(-2, -1)  # [b, k, h/k, s, t]
    weights = scores.masked_fill_(~mask[..., None, :, :], -torch.inf).softmax(dim=-1)
    return (F.dropout(weights, dropout) @ v[:, :, None]).flatten(1, 2)
