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


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """A plain computation in place of the GPU's kernel, by the ends of the documents alone."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k
    lengths = cu_seq_q.diff().tolist()
    assert max(lengths) == max_q
    qkv = [x.transpose(0, 1)[None] for x in (query, key, value)]
    return plain(*qkv, block_diagonal(lengths))[0].transpose(0, 1)


def as_in_2_10(*args, is_causal=False):
    assert is_causal and args[0].shape == args[1].shape
    return varlen_attn(*args)


def as_in_2_11(*args, window_size=(-1, -1)):
    assert window_size == (-1, 0) and args[0].shape == args[1].shape
    return varlen_attn(*args)


def as_in_2_13(*args, window_size=(-1, -1), enable_gqa=False):
    assert window_size == (-1, 0) and (enable_gqa or args[0].shape == args[1].shape)
    return varlen_attn(*args)


@pytest.fixture
def gpu(monkeypatch):
    """Makes the CPU a GPU that runs FlashAttention, with the `varlen_attn` of one of torch's versions."""

    def has(version):
        module = SimpleNamespace(varlen_attn=version)
        monkeypatch.setattr(attention_module, "runs_flash", lambda device: True)
        monkeypatch.setattr(attention_module, "import_module", {attention_module.VARLEN: module}.__getitem__)
        attention_module._varlen_kernel.cache_clear()

    yield has
    attention_module._varlen_kernel.cache_clear()


@pytest.mark.parametrize("version", [as_in_2_10, as_in_2_11, as_in_2_13])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_for_documents_is_told_their_ends(kv_heads, version, gpu):
    q, k, v = (x[:1] for x in random_qkv(13, 13, kv_heads=kv_heads))
    expected = attention(q, k, v, Documents(LENGTHS))
    gpu(version)
    assert_close(attention_module._varlen(q, k, v, Documents(LENGTHS)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [8, 20, 64, 80, 96, 100, 128, 192, 200, 224, 256, 264])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_kernel_is_taken_for_what_it_takes_and_else_one_document_after_the_other(
    dtype, width, dropout, gpu, monkeypatch
):
    calls = []
    each = attention_module._one_by_one
    monkeypatch.setattr(attention_module, "_one_by_one", lambda *args: calls.append("each") or each(*args))
    gpu(as_in_2_13)
    q, k, v = torch.randn(3, 1, 2, 13, width).to(dtype).unbind()
    documents = Documents(LENGTHS)
    kernel = documents.kernel
    documents.kernel = lambda *args: calls.append("kernel") or kernel(*args)
    documents.kernel.keywords = kernel.keywords
    found = attention(q, k, v, documents, dropout)
    half = dtype != torch.float32
    fits = half and width in (8, 64, 80, 96, 128, 192, 256) and not dropout
    assert calls == ["kernel" if fits else "each"]
    if not dropout:
        wanted = plain(q.double(), k.double(), v.double(), block_diagonal(LENGTHS))
        assert_close(found.double(), wanted, atol=3e-2 if half else 1e-5, rtol=3e-2 if half else 1e-5)


@pytest.mark.parametrize(
    ("device", "capability", "runs"),
    [("cuda", (7, 0), False), ("cuda", (7, 5), False), ("cuda", (8, 0), True), ("cuda:1", (8, 6), True),
     ("cuda", (9, 0), True), ("cuda", (12, 0), True), ("cpu", None, False), ("meta", None, False)],
)  # fmt: skip
def test_which_gpus_run_the_kernel(device, capability, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention_module.runs_flash(torch.device(device)) is runs


def test_a_torch_without_the_kernel_computes_one_document_after_the_other(monkeypatch):
    monkeypatch.setattr(attention_module, "runs_flash", lambda device: True)
    monkeypatch.setattr(attention_module, "find_spec", lambda name: None)
    assert attention_module._varlen_kernel.__wrapped__(torch.device("cuda")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [64, 80, 96, 100, 128, 224, 256])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_on_a_gpu_documents_do_not_see_each_other(dtype, width, kv_heads):
    """Of any width, whether the kernel takes it or not, forward and backward."""
    torch.manual_seed(0)
    lengths = [130, 1, 300, 65]
    shapes = [(1, heads, sum(lengths), width) for heads in (4, kv_heads, kv_heads)]
    qkv = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found = attention(*qkv, Documents(lengths, torch.device("cuda")))
    wanted = plain(*exact, block_diagonal(lengths).cuda())
    probe = torch.randn_like(wanted)
    found_gradients = torch.autograd.grad(found, qkv, probe.to(dtype))
    wanted_gradients = torch.autograd.grad(wanted, exact, probe)
    for ours, theirs in zip((found, *found_gradients), (wanted, *wanted_gradients), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() / theirs.norm() < (1e-4 if dtype == torch.float32 else 0.015)


@pytest.mark.gpu
def test_on_an_ampere_gpu_the_kernel_is_found():
    capable = torch.cuda.get_device_capability() >= (8, 0)
    assert (Documents([3, 4], torch.device("cuda")).kernel is not None) is capable


def test_positions_start_anew_with_each_document():
    assert Documents([3, 1, 2]).positions().tolist() == [[0, 1, 2, 0, 0, 1]]
