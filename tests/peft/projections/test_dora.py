"""DoRA against PEFT's layer, its magnitude against the paper's formula; what it shares with LoRA is in test_lora."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from torchtune_lite.peft import DoRALinear, dequantize


def test_output_and_gradients_are_those_of_peft(beside_peft):
    pair = beside_peft(DoRALinear)
    assert len(pair.params) == 3
    ours, theirs = pair.ours(pair.x), pair.theirs(pair.x)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), [p for p, _ in pair.params] + [pair.x])
    others = torch.autograd.grad((theirs * weights).sum(), [p for _, p in pair.params] + [pair.x])
    for gradient, other in zip(mine, others, strict=True):
        assert_close(gradient, other, atol=1e-4, rtol=1e-5)


def test_the_magnitude_starts_as_the_row_norms_of_the_base():
    module = DoRALinear(128, 128, rank=4, alpha=8, quantize_base=True)
    rows = dequantize(module.weight).pow(2).sum(dim=1).sqrt()
    assert module.magnitude.shape == (128,)
    assert_close(module.magnitude.data, rows)


def test_each_row_of_the_merged_weight_is_as_long_as_its_magnitude():
    module = DoRALinear(48, 32, rank=4, alpha=8)
    torch.nn.init.normal_(module.lora_b.weight)
    module.magnitude.data.uniform_(0.5, 2.0)
    assert_close(module.merged_weight().norm(dim=1), module.magnitude.data)


def test_the_norm_carries_no_gradient():
    module = DoRALinear(48, 32, rank=4, alpha=8)
    torch.nn.init.normal_(module.lora_b.weight)
    x = torch.randn(5, 48)
    module(x).square().sum().backward()
    a, b = (p.detach().clone().requires_grad_() for p in (module.lora_a.weight, module.lora_b.weight))
    norm = (module.weight + module.scaling * b @ a).norm(dim=1).detach()
    out = module.magnitude.detach() / norm * F.linear(x, module.weight + module.scaling * b @ a)
    out.square().sum().backward()
    assert_close(module.lora_a.weight.grad, a.grad, atol=1e-4, rtol=1e-4)
    assert_close(module.lora_b.weight.grad, b.grad, atol=1e-4, rtol=1e-4)
