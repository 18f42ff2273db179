"""A cache returns all its entries, in order."""

import pytest
import torch

from torchtune_lite.modules import KVCache


def cache(max_seq_len=6):
    return KVCache(2, max_seq_len, num_kv_heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def test_pieces_come_back_joined():
    keys, values = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    filled, end = cache(), 0
    for size in (3, 1, 2):
        piece = slice(end, end + size)
        end += size
        k, v = filled.update(keys[:, :, piece], values[:, :, piece])
        assert torch.equal(k, keys[:, :, :end]) and torch.equal(v, values[:, :, :end])
    assert filled.length == 6


def test_one_position_too_many_is_an_error_and_changes_nothing():
    filled = cache(max_seq_len=4)
    three, two = torch.ones(2, 3, 3, 4), torch.ones(2, 3, 2, 4)
    filled.update(three, three)
    with pytest.raises(ValueError, match="holds 4 positions, 5 are needed"):
        filled.update(two, two)
    assert filled.length == 3
