"""Products with int8 weights against those in float32 of what they stand for, and where they are taken."""

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.generation import Int8Linear
from torchtune_lite.kernels import plain
from torchtune_lite.kernels.int8 import cpu
from torchtune_lite.kernels.int8.codec import decode, encode
from torchtune_lite.kernels.int8.linear import linear, rounded
from torchtune_lite.modules import transformer


def test_inputs_are_rounded_to_steps_of_their_block():
    torch.manual_seed(0)
    x = torch.randn(3, 150) * torch.logspace(-2, 2, 150)
    x[1, 64:128] = 0
    found = rounded(x)
    for block in (slice(0, 64), slice(64, 128), slice(128, 150)):
        step = x[:, block].abs().amax(1, keepdim=True) / 127
        assert ((found - x)[:, block].abs() <= 0.501 * step).all()
    assert not found[1, 64:128].any()


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(cpu, "takes", lambda x: False)
    elif not cpu.takes(torch.ones(1)):
        pytest.skip("needs a C++ compiler")


def test_a_product_is_near_that_of_the_weight_itself(way):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 192), torch.randn(70, 192), torch.randn(70)
    expected = torch.nn.functional.linear(x, weight, bias)
    found = linear(x, encode(weight, bias))
    assert found.shape == (2, 5, 70) and 1e-4 < (found - expected).norm() / expected.norm() < 0.015
    assert_close(found, torch.nn.functional.linear(rounded(x), decode(encode(weight)), bias), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_layers_products_are_those_of_each_projection(way, activation):
    torch.manual_seed(0)
    w1, w3 = (Int8Linear(torch.randn(96, 64) / 8) for _ in range(2))
    w2, x = Int8Linear(torch.randn(64, 96) / 8), torch.randn(1, 7, 64)
    with plain():
        expected = transformer.project(x, w1, w3)
        mlp = transformer.gated_mlp(x, w1, w2, w3, activation, None)
    found = transformer.project(x, w1, w3)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # an activation on the border of two steps may be rounded to the other
    assert (transformer.gated_mlp(x, w1, w2, w3, activation, None) - mlp).abs().max() < 0.01 * mlp.abs().max()


def test_projections_of_which_one_is_not_in_int8_run_as_they_stand():
    x, w, other = torch.randn(1, 3, 64), Int8Linear(torch.randn(64, 64)), torch.nn.Linear(64, 64)
    assert_close(transformer.project(x, w, other)[1], other(x))
    assert_close(transformer.gated_mlp(x, w, other, w, "silu", None), other(torch.nn.functional.silu(w(x)) * w(x)))
