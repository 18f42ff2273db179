"""LoRA against PEFT's layer, and its own guarantees: it starts at the base, and merges to the same function."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from torchtune_lite.peft import DoRALinear, LoRALinear, dequantize, is_quantized

KINDS = [LoRALinear, DoRALinear]


def trained(kind, *args, **kwargs):
    """A module whose update is not zero."""
    torch.manual_seed(0)
    module = kind(*args, **kwargs)
    torch.nn.init.normal_(module.lora_b.weight)
    if kind is DoRALinear:
        module.magnitude.data.mul_(torch.empty(len(module.magnitude)).uniform_(0.5, 1.5))
    return module


def test_output_and_gradients_are_those_of_peft(beside_peft):
    pair = beside_peft(LoRALinear)
    ours, theirs = pair.ours(pair.x), pair.theirs(pair.x)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), [p for p, _ in pair.params] + [pair.x])
    others = torch.autograd.grad((theirs * weights).sum(), [p for _, p in pair.params] + [pair.x])
    for gradient, other in zip(mine, others, strict=True):
        assert_close(gradient, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_leaves_the_base_as_it_is(kind, quantize_base):
    module = kind(128, 128, rank=8, alpha=16, quantize_base=quantize_base)
    x = torch.randn(3, 128)
    assert_close(module(x), F.linear(x, dequantize(module.weight)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weight_is_the_same_function(kind, quantize_base):
    module = trained(kind, 128, 128, rank=8, alpha=16, quantize_base=quantize_base)
    x = torch.randn(3, 128)
    assert not torch.allclose(module(x), F.linear(x, dequantize(module.weight)), atol=1e-2)
    assert_close(module(x), F.linear(x, module.merged_weight()), atol=1e-4, rtol=1e-4)
    assert is_quantized(module.weight) == quantize_base


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weight_of_a_bf16_model_is_rounded_once(kind):
    module = trained(kind, 128, 64, rank=8, alpha=16)
    exact = module.bfloat16().float().merged_weight()
    merged = module.bfloat16().merged_weight()
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, exact.bfloat16())


def test_alpha_over_rank_scales_the_update():
    module = trained(LoRALinear, 24, 16, rank=4, alpha=2)
    x = torch.randn(3, 24)
    update = x @ module.lora_a.weight.T @ module.lora_b.weight.T
    assert module.scaling == 0.5
    assert_close(module(x), F.linear(x, module.weight) + 0.5 * update)


def test_a_starts_uniform_and_b_at_zero():
    torch.manual_seed(0)
    module = LoRALinear(400, 300, rank=32, alpha=64)
    a = module.lora_a.weight
    assert torch.count_nonzero(module.lora_b.weight) == 0
    assert a.abs().max() <= 1 / math.sqrt(400)
    assert a.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_on_the_input_of_the_update_only_and_off_in_eval(kind):
    x = torch.randn(30, 24)
    module = trained(kind, 24, 16, rank=4, alpha=8, dropout=0.5)
    without = trained(kind, 24, 16, rank=4, alpha=8)
    assert torch.equal(module.eval()(x), without(x))
    torch.manual_seed(1)
    found = module.train()(x)
    torch.manual_seed(1)
    update = module.scaling * F.dropout(x, 0.5) @ module.lora_a.weight.T @ module.lora_b.weight.T
    expected = F.linear(x, module.weight) + update
    if kind is DoRALinear:
        norm = (module.weight + module.scaling * module.lora_b.weight @ module.lora_a.weight).norm(dim=1)
        expected = module.magnitude / norm * expected
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained_and_named(kind):
    module = kind(24, 16, rank=4, alpha=8)
    assert sorted(name for name, p in module.named_parameters() if p.requires_grad) == sorted(module.adapter_params())
    assert not module.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_built_on_meta_materialises_where_the_weight_is(kind, dtype):
    with torch.device("meta"):
        module = kind(24, 16, rank=4, alpha=8)
    weight = torch.randn(16, 24).to(dtype)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    module.init_adapter()
    for name in module.adapter_params():
        param = module.get_parameter(name)
        assert (param.device.type, param.dtype, param.requires_grad) == ("cpu", dtype, True)
    x = torch.randn(3, 24).to(dtype)
    assert_close(module(x), F.linear(x, weight), atol=1e-2, rtol=1e-2)
