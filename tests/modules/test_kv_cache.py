"""Slots keep what was put in, however unlike their lengths are."""

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.modules import CachedSequences, KVCache
from torchtune_lite.modules.attention import attention
from torchtune_lite.modules.kv_cache import cached_attention

CPU = torch.device("cpu")


def cache(num_slots=3, capacity=6):
    return KVCache(num_slots, capacity, num_kv_heads=2, head_dim=4, dtype=torch.float32, device=CPU)


def test_new_tokens_go_where_their_slot_ends():
    filled, k, v = cache(), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    filled.write(k, v, CachedSequences([2, 0], [1, 3], [2, 3], CPU))
    assert torch.equal(filled.k[2, :, 1:3], k[0, :, :2]) and torch.equal(filled.v[2, :, 1:3], v[0, :, :2])
    assert torch.equal(filled.k[0, :, 3:6], k[0, :, 2:]) and torch.equal(filled.v[0, :, 3:6], v[0, :, 2:])
    assert filled.k.count_nonzero() == filled.v.count_nonzero() == 5 * 2 * 4


def test_growing_and_copying_keep_what_is_there():
    filled = cache()
    filled.write(k := torch.randn(1, 2, 6, 4), v := torch.randn(1, 2, 6, 4), CachedSequences([1], [0], [6], CPU))
    filled.grow(9)
    assert filled.capacity == 9
    filled.copy(1, 0, 4)
    for kept, given in ((filled.k, k[0]), (filled.v, v[0])):
        assert torch.equal(kept[1, :, :6], given) and torch.equal(kept[0, :, :4], given[:, :4])
        assert not kept[0, :, 4:].any() and not kept[1, :, 6:].any()


def test_reserved_positions_stand_before_each_slot_and_are_not_counted():
    held = KVCache(2, 4, num_kv_heads=2, head_dim=4, dtype=torch.float32, device=CPU, reserved=3)
    assert held.capacity == 4 and held.k.shape[2] == 7
    held.k[:, :, :3] = 1
    held.k[0, :, 3:5] = 2
    held.grow(6)
    assert held.capacity == 6 and held.k.shape[2] == 9
    held.k[1] = 0
    held.copy(0, 1, 2)
    assert torch.equal(held.k[1, 0, :, 0], torch.tensor([1.0, 1, 1, 2, 2, 0, 0, 0, 0]))


def test_positions_and_lengths_are_those_of_each_sequence():
    sequences = CachedSequences([4, 0], [7, 0], [1, 3], CPU)
    assert sequences.positions().tolist() == [[7, 0, 1, 2]]
    assert sequences.lengths().tolist() == [[8, 3, 3, 3]] and sequences.longest == 8
    assert CachedSequences([4, 0], [7, 0], [1, 3], CPU, [20, 30]).lengths().tolist() == [[20, 30, 30, 30]]


OPTIONS = [{}, {"window": 3}, {"softcap": 2.0}, {"scale": 0.3, "window": 2, "softcap": 1.5}]


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_attention_in_pieces_is_that_of_each_sequence_whole(options):
    torch.manual_seed(0)
    lengths, pieces = [9, 5, 12], [[4, 1, 1, 3], [0, 1, 1, 3], [9, 1, 1, 1]]
    whole = [(torch.randn(1, 4, n, 8), torch.randn(1, 2, n, 8), torch.randn(1, 2, n, 8)) for n in lengths]
    kept = KVCache(5, 12, 2, 8, torch.float32, CPU)
    slots, starts, found = [3, 0, 4], [0, 0, 0], [[], [], []]
    for step in range(4):
        sizes = [each[step] for each in pieces]
        took = [i for i in range(3) if sizes[i]]
        parts = [[x[:, :, starts[i] : starts[i] + sizes[i]] for x in whole[i]] for i in took]
        q, k, v = (torch.cat(each, 2) for each in zip(*parts, strict=True))
        given = CachedSequences([slots[i] for i in took], [starts[i] for i in took], [sizes[i] for i in took], CPU)
        y = cached_attention(q, k, v, kept, given, **options)
        for i, part in zip(took, y.split([sizes[i] for i in took], dim=2), strict=True):
            found[i].append(part)
            starts[i] += sizes[i]
    for parts, (q, k, v) in zip(found, whole, strict=True):
        assert_close(torch.cat(parts, 2), attention(q, k, v, **options), atol=1e-6, rtol=1e-5)
