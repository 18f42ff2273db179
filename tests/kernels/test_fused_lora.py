"""Projections of one input in one step, against the same projections one by one."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchtune_lite.kernels import fused_lora
from torchtune_lite.modules.transformer import project
from torchtune_lite.peft import DoRALinear, FrozenNF4Linear, LoRALinear


def lora(out_dim=128, rank=3, **kwargs):
    """An adapted projection whose update is not zero."""
    made = LoRALinear(128, out_dim, rank, 8, **kwargs)
    nn.init.normal_(made.lora_b.weight, std=0.3)
    return made


def frozen(out_dim=128, bias=False):
    return nn.Linear(128, out_dim, bias=bias).requires_grad_(False)


class Subclass(LoRALinear):
    """A subclass that may compute something else."""


def hooked(projection):
    """A projection with a hook."""
    projection.register_forward_hook(lambda *_: None)
    return projection


def unfused(projection):
    projection.fused = False
    return projection


GROUPS = {
    "q, k, v": lambda: [lora(), lora(256, rank=5), lora(rank=2)],
    "k without adapter": lambda: [lora(), frozen(256), lora(256, rank=1)],
    "only v": lambda: [frozen(), frozen(), lora()],
    "one": lambda: [lora()],
    "frozen biases": lambda: [lora(use_bias=True), frozen(bias=True), lora(quantize_base=True, use_bias=True)],
    "NF4": lambda: [lora(quantize_base=True), FrozenNF4Linear(128, 128), lora(256, rank=4, quantize_base=True)],
}


def gradients(outputs, inputs, probes):
    """Gradients of a weighted sum of all outputs."""
    return torch.autograd.grad(sum((y * p).sum() for y, p in zip(outputs, probes, strict=True)), inputs)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", GROUPS)
def test_outputs_and_gradients_are_those_of_the_projections(group, dtype, device):
    torch.manual_seed(0)
    group = nn.ModuleList(GROUPS[group]()).to(dtype).to(device)
    x = torch.randn(2, 5, 128, dtype=dtype, device=device, requires_grad=True)
    expected, found = [p(x) for p in group], project(x, *group)
    probes = [torch.randn_like(y) for y in expected]
    assert all(type(y.grad_fn.next_functions[0][0]).__name__ == "_ProductsBackward" for y in found)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    inputs = [x, *(p for name, p in group.named_parameters() if "lora" in name)]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and (mine - theirs).norm() <= tolerance * theirs.norm()
    for mine, theirs in zip(gradients(found, inputs, probes), gradients(expected, inputs, probes), strict=True):
        assert mine.dtype == dtype and theirs.norm() > 1e-2
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


def test_factors_may_be_more_precise_than_the_input():
    group = [lora(), lora()]
    for p in group:
        p.weight.data = p.weight.data.bfloat16()
    x = torch.randn(7, 128).bfloat16()
    for y in project(x, *group):
        y.float().sum().backward(retain_graph=True)
    assert {f.weight.grad.dtype for p in group for f in (p.lora_a, p.lora_b)} == {torch.float32}


def test_an_output_that_is_not_used_has_no_share_in_the_gradient():
    group = [lora(), lora(rank=2)]
    x = torch.randn(4, 128, requires_grad=True)
    used, _ = project(x, *group)
    used.sum().backward()
    expected = torch.autograd.grad(group[0](x).sum(), x)[0]
    assert_close(x.grad, expected)
    assert not group[1].lora_b.weight.grad.any()


@pytest.mark.parametrize(
    "odd_one",
    [
        lambda: lora(dropout=0.1),
        lambda: DoRALinear(128, 128, 2, 4),
        lambda: nn.Linear(128, 128),
        lambda: Subclass(128, 128, 2, 4),
        lambda: hooked(lora()),
        lambda: unfused(lora()),
    ],
    ids=["dropout", "DoRA", "trained", "a subclass", "a hook", "told not to"],
)
def test_whatever_is_no_plain_lora_is_computed_by_itself(odd_one, monkeypatch):
    monkeypatch.setattr(fused_lora, "forward", None)  # would raise
    group = [lora(), odd_one()]
    x = torch.randn(3, 128)
    torch.manual_seed(1)
    found = project(x, *group)
    torch.manual_seed(1)
    for mine, p in zip(found, group, strict=True):
        assert_close(mine, p(x), rtol=0, atol=0)
        mine.sum().backward()
    assert all(param.grad is not None for param in group[1].parameters() if param.requires_grad)


def test_under_autocast_each_product_is_its_own(monkeypatch):
    monkeypatch.setattr(fused_lora, "forward", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert {y.dtype for y in project(torch.randn(3, 128), lora(), frozen())} == {torch.bfloat16}
