"""RMSNorm against its formula in float64 and beside torch's."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchtune_lite.modules import RMSNorm


def norms(dtype):
    """Ours and torch's with the same weight, and an input whose rows differ in size."""
    torch.manual_seed(0)
    ours, theirs = RMSNorm(64, 1e-3).to(dtype), nn.RMSNorm(64, eps=1e-3, dtype=dtype)
    nn.init.uniform_(ours.weight, 0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 64, dtype=dtype) * torch.logspace(-2, 2, 5, dtype=dtype)[:, None]
    return ours, theirs, x.requires_grad_(), torch.randn(3, 5, 64, dtype=dtype)


def test_output_and_gradients_are_those_of_the_formula():
    ours, _, x, probe = norms(torch.float32)
    exact, weight = x.detach().double().requires_grad_(), ours.weight.detach().double().requires_grad_()
    y = exact / (exact.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    assert_close(ours(x).double(), y, atol=1e-6, rtol=1e-6)
    found = torch.autograd.grad(ours(x), [x, ours.weight], probe)
    expected = torch.autograd.grad(y, [exact, weight], probe.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)


def test_in_bf16_it_is_as_near_to_the_formula_as_torchs():
    ours, theirs, x, probe = norms(torch.bfloat16)
    exact = theirs.double()
    y = exact(x.detach().double())
    theirs = nn.RMSNorm(64, eps=1e-3, dtype=torch.bfloat16)
    theirs.load_state_dict(ours.state_dict())
    assert (ours(x).double() - y).norm() <= 1.01 * (theirs(x).double() - y).norm()
    mine, other = (torch.autograd.grad(norm(x), [x, norm.weight], probe) for norm in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        assert (a - b).norm() <= 1e-2 * b.norm()


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_only_the_gradient_that_is_needed_is_made(trained):
    ours, theirs, x, probe = norms(torch.float32)
    given = x.detach().requires_grad_(trained == "x")
    for norm in (ours, theirs):
        norm.weight.requires_grad_(trained == "weight")
    mine, other = (
        torch.autograd.grad(norm(given), given if trained == "x" else norm.weight, probe)[0] for norm in (ours, theirs)
    )
    assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_nothing_is_kept_but_the_input_and_a_number_a_row():
    ours, _, x, _ = norms(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours(x)
    assert sorted(t.numel() for t in kept if t is not ours.weight and t is not x) == [15]
