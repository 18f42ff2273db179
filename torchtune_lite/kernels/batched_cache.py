"""Attention of single new tokens to their slots of a KV cache, all at once: padded with keys that none sees.

n tokens, h heads, k kv heads, e head width, t positions of the longest sequence.
"""

from typing import Any

import torch
from torch import Tensor

from torchtune_lite.modules import kv_cache
from torchtune_lite.modules.attention import attention
from torchtune_lite.modules.kv_cache import CachedSequences, KVCache


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: KVCache,
    sequences: CachedSequences,
    *,
    window: int | None = None,
    **options: Any,
) -> Any:
    """Compute `modules.kv_cache.cached_attention`, in one call for the first sequences that have one new token each."""
    n = sequences.num_single
    if n < 2:
        return NotImplemented
    longer = None
    if n < q.shape[2]:
        parts = (x[:, :, n:] for x in (q, k, v))
        longer = kv_cache.cached_attention.plain(*parts, cache, sequences.rest, window=window, **options)
    slots, positions = sequences.slot_of_token[:n], sequences.positions()[0, :n]
    cache.k[slots, :, positions] = k[0, :, :n].transpose(0, 1)
    cache.v[slots, :, positions] = v[0, :, :n].transpose(0, 1)
    rows = sequences.slots[:n]
    t = max(sequences.ends[:n])
    in_order = rows == list(range(rows[0], rows[0] + n))
    where = slice(rows[0], rows[0] + n) if in_order else slots  # a view, or a copy
    keys, values = (x[where, :, :t] for x in (cache.k, cache.v))  # [n, k, t, e]
    places, last = torch.arange(t, device=q.device), positions[:, None]
    seen = places <= last
    if window is not None:
        seen &= places > last - window
    queries = q[0, :, :n].transpose(0, 1)[:, :, None]  # [n, h, 1, e]
    y = attention(queries, keys, values, seen[:, None, None], **options)[:, :, 0].transpose(0, 1)[None]
    return y if longer is None else torch.cat([y, longer], dim=2)
