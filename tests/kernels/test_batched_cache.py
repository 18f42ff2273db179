"""Single tokens together attend as each does alone, whatever lies in the slots beside and behind theirs."""

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.kernels import batched_cache
from torchtune_lite.modules import CachedSequences, KVCache, kv_cache

CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"softcap": 2.0}, {"scale": 0.1, "window": 5, "softcap": 30.0}])
@pytest.mark.parametrize("slots", [[1, 2, 3], [2, 0, 3]])
@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 1, 9]])
@torch.no_grad()
def test_attention_to_a_cache_is_the_plain_one(sizes, slots, options):
    torch.manual_seed(0)
    caches = [KVCache(4, 40, 2, 16, torch.float32, CPU) for _ in range(2)]
    caches[0].k.normal_(), caches[0].v.normal_()
    caches[1].k.copy_(caches[0].k), caches[1].v.copy_(caches[0].v)
    sequences = CachedSequences(slots, [30, 0, 17], sizes, CPU)
    q, k, v = (torch.randn(1, sum(sizes), heads, 16).transpose(1, 2) for heads in (6, 2, 2))
    found = batched_cache.cached_attention(q, k, v, caches[0], sequences, **options)
    assert_close(found, kv_cache.cached_attention.plain(q, k, v, caches[1], sequences, **options))
    assert torch.equal(caches[0].k, caches[1].k) and torch.equal(caches[0].v, caches[1].v)


def test_a_lone_token_and_longer_sequences_are_left_to_the_plain_function():
    cache, x = KVCache(2, 8, 2, 16, torch.float32, CPU), torch.randn(1, 2, 4, 16)
    for slots, sizes in (([0], [4]), ([0, 1], [1, 3]), ([0, 1], [2, 2])):
        sequences = CachedSequences(slots, [0] * len(slots), sizes, CPU)
        assert batched_cache.cached_attention(x, x, x, cache, sequences) is NotImplemented
