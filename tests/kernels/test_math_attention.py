"""Attention by products, and torch's fused one, against softmax attention in float64."""

import pytest
import torch

from tests.modules.formulas import softmax_attention
from tests.modules.test_attention import random_qkv
from torchtune_lite.kernels import math_attention
from torchtune_lite.modules.attention import attention


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("s", "t"), [(6, 6), (4, 9)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("short", [0, 512])
def test_in_bf16_both_paths_are_as_near_to_exact_attention(s, t, kv_heads, masked, short, monkeypatch):
    monkeypatch.setattr(math_attention, "SHORT", short)
    qkv = [x.requires_grad_() for x in random_qkv(s, t, kv_heads=kv_heads, dtype=torch.bfloat16)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    visible = torch.arange(t) <= torch.arange(t - s, t)[:, None]
    mask = visible.expand(2, 1, s, t).clone() if masked else None
    if masked:
        mask[0, 0, :, 0] = False
        mask[0, 0, torch.arange(s), torch.arange(t - s, t)] = True
        visible = mask
    found, wanted = attention(*qkv, mask), softmax_attention(*exact, visible)
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    probe = torch.randn(found.shape)
    found_gradients = torch.autograd.grad(found, qkv, probe.bfloat16())
    wanted_gradients = torch.autograd.grad(wanted, exact, probe.double())
    for ours, theirs in zip((found, *found_gradients), (wanted, *wanted_gradients), strict=True):
        assert (ours.double() - theirs).norm() / theirs.norm() < 0.015


def test_it_is_taken_for_16_bits_and_short_texts_without_dropout():
    q, k, v = random_qkv(6, 6, dtype=torch.bfloat16)
    assert math_attention.attention(q, k, v) is not NotImplemented
    assert math_attention.attention(q, k, v, dropout=0.1) is NotImplemented
    assert math_attention.attention(q.float(), k.float(), v.float()) is NotImplemented
    long = torch.zeros(1, 2, math_attention.SHORT + 1, 8, dtype=torch.bfloat16)
    assert math_attention.attention(long, long, long) is NotImplemented
