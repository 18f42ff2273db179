"""The GPU's kernel for packed sequences, replaced by a plain computation, and the conditions for its use."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from tests.modules.formulas import block_diagonal, softmax_attention
from torchtune_lite import kernels
from torchtune_lite.kernels import varlen_attention
from torchtune_lite.modules import PackedSequences
from torchtune_lite.modules.attention import attention

LENGTHS = [3, 1, 7, 2]


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=None, before=-1):
    """A plain computation in place of the kernel, by the ends of the sequences alone."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k
    lengths = cu_seq_q.diff().tolist()
    assert max(lengths) == max_q
    qkv = [x.transpose(0, 1)[None] for x in (query, key, value)]
    visible = block_diagonal(lengths, window=None if before < 0 else before + 1)
    return softmax_attention(*qkv, visible, scale=scale)[0].transpose(0, 1)


def as_in_2_10(*args, is_causal=False):
    assert is_causal and args[0].shape == args[1].shape
    return varlen_attn(*args)


def as_in_2_11(*args, scale=None, window_size=(-1, -1)):
    assert window_size[1] == 0 and args[0].shape == args[1].shape
    return varlen_attn(*args, scale, window_size[0])


def as_in_2_13(*args, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert window_size[1] == 0 and (enable_gqa or args[0].shape == args[1].shape)
    return varlen_attn(*args, scale, window_size[0])


@pytest.fixture
def gpu(monkeypatch):
    """Make the CPU pass for a GPU that runs FlashAttention, with the `varlen_attn` of one of torch's versions."""
    monkeypatch.setattr(varlen_attention, "_kernels", {})

    def has(version):
        calls = []
        module = SimpleNamespace(varlen_attn=version)
        monkeypatch.setattr(varlen_attention, "runs_flash", lambda device: True)
        monkeypatch.setattr(varlen_attention, "import_module", {varlen_attention.MODULE: module}.__getitem__)
        kernel = varlen_attention.find_kernel(torch.device("cpu"))
        counted = kernel._replace(attend=lambda *args, **how: calls.append(how) or kernel.attend(*args, **how))
        varlen_attention._kernels[torch.device("cpu")] = counted
        return calls

    return has


def random_qkv(kv_heads=2, dtype=torch.bfloat16, head_dim=8):
    torch.manual_seed(0)
    return [torch.randn(1, n, sum(LENGTHS), head_dim).to(dtype) for n in (4, kv_heads, kv_heads)]


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"scale": 0.3}, {"window": 2, "scale": 0.1}])
@pytest.mark.parametrize("version", [as_in_2_10, as_in_2_11, as_in_2_13])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_is_told_the_ends_of_the_sequences(kv_heads, version, options, gpu):
    calls, qkv, sequences = gpu(version), random_qkv(kv_heads), PackedSequences(LENGTHS)
    found = attention(*qkv, sequences, **options)
    assert len(calls) == (version is not as_in_2_10 or not options)
    with kernels.plain():
        assert_close(found, attention(*qkv, sequences, **options), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [8, 20, 64, 80, 96, 100, 128, 192, 200, 224, 256, 264])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"softcap": 20.0}])
def test_it_is_taken_for_what_it_takes(dtype, head_dim, options, gpu):
    calls = gpu(as_in_2_13)
    attention(*random_qkv(4, dtype, head_dim), PackedSequences(LENGTHS), **options)
    fits = dtype != torch.float32 and head_dim in (8, 64, 80, 96, 128, 192, 256) and not options
    assert len(calls) == fits
    attention(*random_qkv(4, dtype, head_dim))
    assert len(calls) == fits, "what is not packed goes elsewhere"


@pytest.mark.parametrize(
    ("device", "capability", "runs"),
    [("cuda", (7, 0), False), ("cuda", (7, 5), False), ("cuda", (8, 0), True), ("cuda:1", (8, 6), True),
      ("cuda", (9, 0), True), ("cuda", (12, 0), True), ("cpu", None, False), ("meta", None, False)],
)  # fmt: skip
def test_which_gpus_run_it(device, capability, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert varlen_attention.runs_flash(torch.device(device)) is runs


def test_a_torch_without_it_has_none(monkeypatch):
    monkeypatch.setattr(varlen_attention, "_kernels", {})
    monkeypatch.setattr(varlen_attention, "runs_flash", lambda device: True)
    monkeypatch.setattr(varlen_attention, "find_spec", lambda name: None)
    assert varlen_attention.find_kernel(torch.device("cuda")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 100, 128, 224, 256])
@pytest.mark.parametrize(("kv_heads", "window"), [(4, None), (1, None), (2, 100)])
def test_on_a_gpu_sequences_do_not_see_each_other(dtype, head_dim, kv_heads, window):
    """For any width, supported by the kernel or not, forward and backward."""
    torch.manual_seed(0)
    lengths = [130, 1, 300, 65]
    shapes = [(1, heads, sum(lengths), head_dim) for heads in (4, kv_heads, kv_heads)]
    qkv = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found = attention(*qkv, PackedSequences(lengths, torch.device("cuda")), window=window)
    wanted = softmax_attention(*exact, block_diagonal(lengths, window).cuda())
    probe = torch.randn_like(wanted)
    found_gradients = torch.autograd.grad(found, qkv, probe.to(dtype))
    wanted_gradients = torch.autograd.grad(wanted, exact, probe)
    for ours, theirs in zip((found, *found_gradients), (wanted, *wanted_gradients), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() / theirs.norm() < (1e-4 if dtype == torch.float32 else 0.015)


@pytest.mark.gpu
def test_on_an_ampere_gpu_it_is_found():
    capable = torch.cuda.get_device_capability() >= (8, 0)
    assert (varlen_attention.find_kernel(torch.device("cuda")) is not None) is capable
