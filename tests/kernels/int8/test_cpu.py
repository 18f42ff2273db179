"""The compiled products against the plain ones, to rounding; each row alone as in any company, to the bit."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.kernels.int8 import cpu
from torchtune_lite.kernels.int8.codec import decode, encode
from torchtune_lite.kernels.int8.linear import rounded
from torchtune_lite.modules.transformer import ACTIVATIONS

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
COMPILERS = {"with the CPU's dot products": "c++", "portable": "c++ -mno-avx512vnni -mno-avx512f"}


@pytest.fixture(params=COMPILERS, autouse=True)
def built(request, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "extensions"))
    monkeypatch.delenv("TORCHTUNE_LITE_NATIVE", raising=False)
    monkeypatch.setenv("CXX", COMPILERS[request.param])
    cpu._library.cache_clear()
    if not cpu.takes(torch.ones(1)) and request.param == "portable":
        pytest.skip("the compiler knows no such option")
    assert cpu.takes(torch.ones(1))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    cpu._library.cache_clear()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 31])
@pytest.mark.parametrize(("out_dim", "in_dim"), [(16, 64), (5, 7), (100, 150), (33, 256)])
def test_products_are_those_of_what_the_bytes_stand_for(rows, out_dim, in_dim, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, bias = torch.randn(rows, in_dim) * 3, torch.randn(out_dim)
    weight = encode(torch.randn(out_dim, in_dim), bias)
    other = encode(torch.randn(9, in_dim))
    found = cpu.linear(x, [weight, other])
    exact = rounded(x).double()
    assert_close(found[0], (exact @ decode(weight).double().t() + bias).float(), atol=2e-4, rtol=1e-5)
    assert_close(found[1], (exact @ decode(other).double().t()).float(), atol=2e-4, rtol=1e-5)


def test_a_row_gives_the_same_bits_in_any_company():
    torch.manual_seed(0)
    x, weight = torch.randn(37, 150), encode(torch.randn(100, 150))
    mlp = encode(torch.randn(96, 150)), encode(torch.randn(150, 96)), encode(torch.randn(96, 150))
    together, hidden = cpu.linear(x, [weight])[0], cpu.gated_mlp(x, *mlp, "silu")
    for size in (1, 2, 4, 8, 16, 23):
        parts = x.split(size)
        assert torch.equal(torch.cat([cpu.linear(part, [weight])[0] for part in parts]), together)
        assert torch.equal(torch.cat([cpu.gated_mlp(part, *mlp, "silu") for part in parts]), hidden)


@pytest.mark.parametrize("activation", cpu.ACTIVATIONS)
@pytest.mark.parametrize("hidden_dim", [64, 70])
def test_the_feed_forward_is_its_three_products(activation, hidden_dim):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 40)
    w1, w3 = (encode(torch.randn(hidden_dim, 40) / 4, torch.randn(hidden_dim)) for _ in range(2))
    w2 = encode(torch.randn(40, hidden_dim))
    gate, up = (rounded(x) @ decode(each).t() + each.bias for each in (w1, w3))
    expected = rounded(ACTIVATIONS[activation](gate) * up) @ decode(w2).t()
    assert (cpu.gated_mlp(x, w1, w2, w3, activation) - expected).abs().max() < 0.01 * expected.abs().max()


def test_bfloat16_comes_and_goes_rounded():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 150).bfloat16(), encode(torch.randn(100, 150))
    exact = cpu.linear(x.float(), [weight])[0]
    assert torch.equal(cpu.linear(x, [weight])[0], exact.bfloat16())


def test_it_is_off_when_told_so(monkeypatch):
    monkeypatch.setenv("TORCHTUNE_LITE_NATIVE", "0")
    cpu._library.cache_clear()
    assert not cpu.takes(torch.ones(1))


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError):
        cpu.linear(torch.randn(2, 8), [encode(torch.randn(4, 9))])
    w = encode(torch.randn(8, 8))
    with pytest.raises(AssertionError):
        cpu.gated_mlp(torch.randn(2, 8), w, w, encode(torch.randn(9, 8)), "silu")
