"""Attention against the formula."""

import pytest
import torch
from torch.testing import assert_close

from tests.modules.formulas import block_diagonal, softmax_attention
from torchtune_lite import kernels
from torchtune_lite.modules import PackedSequences
from torchtune_lite.modules.attention import attention


@pytest.fixture(autouse=True, params=["plain", "with kernels"])
def both(request):
    """The plain function, and the one that runs."""
    if request.param == "plain":
        with kernels.plain():
            yield
    else:
        yield


def random_qkv(s, t, heads=4, kv_heads=2, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(2, n, length, 8).to(dtype) for n, length in ((heads, s), (kv_heads, t), (kv_heads, t))]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("s", "t"), [(1, 1), (6, 6), (1, 9), (4, 9)])
def test_queries_are_the_last_positions_and_see_what_is_before(s, t, kv_heads):
    q, k, v = random_qkv(s, t, kv_heads=kv_heads)
    visible = torch.arange(t) <= torch.arange(t - s, t)[:, None]
    assert_close(attention(q, k, v), softmax_attention(q, k, v, visible), atol=1e-6, rtol=1e-5)


def test_a_mask_decides_alone_what_is_seen():
    q, k, v = random_qkv(5, 5)
    mask = torch.rand(2, 1, 5, 5) > 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    assert_close(attention(q, k, v, mask), softmax_attention(q, k, v, mask), atol=1e-6, rtol=1e-5)


def test_dropout_is_off_unless_asked_for():
    q, k, v = random_qkv(6, 6)
    assert torch.equal(attention(q, k, v), attention(q, k, v))
    assert not torch.equal(attention(q, k, v, dropout=0.5), attention(q, k, v))


def test_dropout_keeps_the_mean():
    q, k, v = random_qkv(6, 6, dtype=torch.bfloat16)
    mean = torch.stack([attention(q, k, v, dropout=0.5) for _ in range(3000)]).float().mean(0)
    assert_close(mean, attention(q, k, v).float(), atol=0.1, rtol=0.1)
    assert not torch.equal(attention(q, k, v, dropout=0.5), attention(q, k, v))


# --- documents in one row ---

LENGTHS = [3, 1, 7, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_documents_do_not_see_each_other(kv_heads, dtype):
    qkv = [x[:1].requires_grad_() for x in random_qkv(13, 13, kv_heads=kv_heads, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    ours, theirs = attention(*qkv, PackedSequences(LENGTHS)), softmax_attention(*exact, block_diagonal(LENGTHS))
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    assert_close(ours.double(), theirs, **tolerance)
    weight = torch.randn_like(theirs)
    for mine, his in zip(
        torch.autograd.grad(ours, qkv, weight.to(dtype)), torch.autograd.grad(theirs, exact, weight), strict=True
    ):
        assert_close(mine.double(), his, **tolerance)
    assert not torch.allclose(ours.double(), softmax_attention(*exact, block_diagonal([13])), atol=0.05), (
        "the borders count"
    )


def test_positions_start_anew_with_each_document():
    assert PackedSequences([3, 1, 2]).positions().tolist() == [[0, 1, 2, 0, 0, 1]]
    assert PackedSequences([3, 1, 2]).lengths().tolist() == [[3, 3, 3, 1, 2, 2]]


# --- what some families add ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("s", "t"), [(1, 9), (6, 6), (4, 9), (9, 9)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"window": 3}, {"window": 9}, {"softcap": 1.5}, {"scale": 0.7}, {"window": 4, "softcap": 0.8, "scale": 1.3}],
    ids=str,
)
def test_windows_caps_and_scales(options, masked, s, t, dtype):
    """Outputs and gradients; a window counts the query's own key."""
    qkv = [x.requires_grad_() for x in random_qkv(s, t, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    distance = torch.arange(t - s, t)[:, None] - torch.arange(t)
    visible = (distance >= 0).expand(2, 1, s, t)
    if masked:
        visible = visible & (torch.rand(2, 1, s, t) > 0.3) | (distance == 0)
    found = attention(*qkv, visible if masked else None, **options)
    rest = {name: value for name, value in options.items() if name != "window"}
    seen = visible & (distance < options.get("window", t))
    expected = softmax_attention(*exact, seen, **rest)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    probe = torch.randn(found.shape).to(dtype)
    pairs = zip(
        (found, *torch.autograd.grad(found, qkv, probe)),
        (expected, *torch.autograd.grad(expected, exact, probe.double())),
        strict=True,
    )
    for mine, theirs in pairs:
        assert (mine.double() - theirs).norm() <= tolerance * theirs.norm()
    if options.get("window", t) < t or len(rest):
        assert not torch.allclose(expected, softmax_attention(*exact, visible), atol=1e-2)


@pytest.mark.parametrize("options", [{"window": 3}, {"softcap": 1.5, "window": 2}], ids=str)
def test_a_window_is_within_each_sequence_of_a_row(options):
    q, k, v = (x[:1] for x in random_qkv(13, 13))
    parts = [attention(*(x[:, :, a:b] for x in (q, k, v)), **options) for a, b in ((0, 3), (3, 4), (4, 11), (11, 13))]
    assert_close(attention(q, k, v, PackedSequences(LENGTHS), **options), torch.cat(parts, dim=2))
