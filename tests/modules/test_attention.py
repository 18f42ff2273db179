"""Attention against softmax written out."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.modules import Documents, attention

attention_module = sys.modules["torchtune_lite.modules.attention"]  # the function has the same name


def plain(q, k, v, visible):
    """Softmax attention with every head's keys and values repeated; `visible [.., s, t]` says what a query sees."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ v


def random_qkv(s, t, heads=4, kv_heads=2, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(2, n, length, 8).to(dtype) for n, length in ((heads, s), (kv_heads, t), (kv_heads, t))]


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


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("s", "t"), [(6, 6), (4, 9)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("short", [0, 512])
def test_in_bf16_both_paths_are_as_near_to_exact_attention(s, t, kv_heads, masked, short, monkeypatch):
    monkeypatch.setattr(attention_module, "SHORT", short)
    qkv = [x.requires_grad_() for x in random_qkv(s, t, kv_heads=kv_heads, dtype=torch.bfloat16)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    visible = torch.arange(t) <= torch.arange(t - s, t)[:, None]
    mask = visible.expand(2, 1, s, t).clone() if masked else None
    if masked:
        mask[0, 0, :, 0] = False
        mask[0, 0, torch.arange(s), torch.arange(t - s, t)] = True
        visible = mask
    found, wanted = attention(*qkv, mask), plain(*exact, visible)
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    probe = torch.randn(found.shape)
    found_gradients = torch.autograd.grad(found, qkv, probe.bfloat16())
    wanted_gradients = torch.autograd.grad(wanted, exact, probe.double())
    for ours, theirs in zip((found, *found_gradients), (wanted, *wanted_gradients), strict=True):
        assert (ours.double() - theirs).norm() / theirs.norm() < 0.015


def test_dropout_keeps_the_mean():
    q, k, v = random_qkv(6, 6, dtype=torch.bfloat16)
    mean = torch.stack([attention(q, k, v, dropout=0.5) for _ in range(3000)]).float().mean(0)
    assert_close(mean, attention(q, k, v).float(), atol=0.1, rtol=0.1)
    assert not torch.equal(attention(q, k, v, dropout=0.5), attention(q, k, v))


# --- documents in one row ---

LENGTHS = [3, 1, 7, 2]


def block_diagonal(lengths):
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return (document[:, None] == document) & torch.ones(sum(lengths), sum(lengths), dtype=torch.bool).tril()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_documents_do_not_see_each_other(kv_heads, dtype):
    qkv = [x[:1].requires_grad_() for x in random_qkv(13, 13, kv_heads=kv_heads, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    ours, theirs = attention(*qkv, Documents(LENGTHS)), plain(*exact, block_diagonal(LENGTHS))
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    assert_close(ours.double(), theirs, **tolerance)
    weight = torch.randn_like(theirs)
    for mine, his in zip(
        torch.autograd.grad(ours, qkv, weight.to(dtype)), torch.autograd.grad(theirs, exact, weight), strict=True
    ):
        assert_close(mine.double(), his, **tolerance)
    assert not torch.allclose(ours.double(), plain(*exact, block_diagonal([13])), atol=0.05), "the borders count"


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_for_documents_is_told_their_ends(kv_heads, new, monkeypatch):
    """The arguments of `varlen_attn`, of torch 2.10 and of later ones, given to a plain computation in its place."""

    def computed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k == 7
        qkv = [x.transpose(0, 1)[None] for x in (query, key, value)]
        return plain(*qkv, block_diagonal(cu_seq_q.diff().tolist()))[0].transpose(0, 1)

    def as_in_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        assert is_causal and query.shape == key.shape
        return computed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)

    def as_in_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0) and (enable_gqa or query.shape == key.shape)
        return computed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)

    module = SimpleNamespace(varlen_attn=as_in_2_13 if new else as_in_2_10)
    monkeypatch.setattr(attention_module, "import_module", {attention_module.VARLEN: module}.__getitem__)
    documents = Documents(LENGTHS)
    documents.kernel = attention_module._varlen_kernel.__wrapped__()  # not the one that a test before has found
    q, k, v = (x[:1] for x in random_qkv(13, 13, kv_heads=kv_heads))
    ours = attention_module._varlen(q, k, v, documents)
    assert_close(ours, attention(q, k, v, Documents(LENGTHS)))


def test_positions_start_anew_with_each_document():
    assert Documents([3, 1, 2]).positions().tolist() == [[0, 1, 2, 0, 0, 1]]
