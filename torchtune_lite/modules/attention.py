"""Scaled dot-product attention, and the choice between its paths.

b batch, s queries, t keys, h heads, k kv heads, e head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Attends `q [b, h, s, e]` to `k, v [b, k, t, e]`, giving `[b, h, s, e]`; h/k heads share a kv head.

    `mask` is a bool `[b or 1, 1, s, t]`, True where a query may look. Without one, attention is causal and the queries
    are the last s of the t positions, so that a prefix in a KV cache is seen whole.
    """
    s, t = q.shape[2], k.shape[2]
    if mask is None and 1 < s < t:
        mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and s > 1, enable_gqa=grouped
    )
