"""Attention against softmax written out."""

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.modules import attention


def plain(q, k, v, visible):
    """Softmax attention with every head's keys and values repeated; `visible [.., s, t]` says what a query sees."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ v


def random_qkv(s, t, heads=4, kv_heads=2):
    torch.manual_seed(0)
    return torch.randn(2, heads, s, 8), torch.randn(2, kv_heads, t, 8), torch.randn(2, kv_heads, t, 8)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("s", "t"), [(1, 1), (6, 6), (1, 9), (4, 9)])
def test_queries_are_the_last_positions_and_see_what_is_before(s, t, kv_heads):
    q, k, v = random_qkv(s, t, kv_heads=kv_heads)
    visible = torch.arange(t) <= torch.arange(t - s, t)[:, None]
    assert_close(attention(q, k, v), plain(q, k, v, visible), atol=1e-6, rtol=1e-5)


def test_a_mask_decides_alone_what_is_seen():
    q, k, v = random_qkv(5, 5)
    mask = torch.rand(2, 1, 5, 5) > 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    assert_close(attention(q, k, v, mask), plain(q, k, v, mask), atol=1e-6, rtol=1e-5)


def test_dropout_is_off_unless_asked_for():
    q, k, v = random_qkv(6, 6)
    assert torch.equal(attention(q, k, v), attention(q, k, v))
    assert not torch.equal(attention(q, k, v, dropout=0.5), attention(q, k, v))
