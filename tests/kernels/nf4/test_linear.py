"""Products with NF4 weights against the dense weight that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from torchtune_lite.kernels.nf4 import codec
from torchtune_lite.kernels.nf4.linear import row_tiles
from torchtune_lite.peft import DoRALinear, FrozenNF4Linear, LoRALinear, dequantize, quantize, storage
from torchtune_lite.peft.frozen import linear

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(128, 256), (512, 96), (256, 704)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Make a test's weight span several tiles."""
    monkeypatch.setattr(codec, "TILE", 5000)


def frozen(shape, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Parameter(quantize(torch.randn(shape).to(dtype)), requires_grad=False)


def assert_equal_but_for_rounding(ours, expected):
    """The tolerance for sums of products in another order: a last bit of the largest value."""
    assert ours.dtype == expected.dtype and expected.abs().max() > 1
    bits = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[ours.dtype]
    assert_close(ours / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_gradient_are_those_of_the_dequantised_weight(shape, dtype):
    weight = frozen(shape, dtype)
    x = torch.randn(3, 5, shape[1]).to(dtype).requires_grad_()
    probe = torch.randn(3, 5, shape[0]).to(dtype)
    ours, dense = linear(x, weight), F.linear(x, dequantize(weight))
    assert_equal_but_for_rounding(ours, dense)
    (gradient,) = torch.autograd.grad(ours, x, probe)
    (expected,) = torch.autograd.grad(dense, x, probe)
    assert gradient.dtype == dtype and expected.abs().max() > 1
    assert_equal_but_for_rounding(gradient, expected)


def test_a_plain_weight_is_multiplied_plainly():
    x, weight = torch.randn(4, 16), torch.randn(8, 16)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_model_cast_to_another_dtype_than_its_weights_were_quantised_from():
    weight, x = frozen((128, 256)), torch.randn(3, 256).bfloat16().requires_grad_()
    y = linear(x, weight)
    assert torch.equal(y, F.linear(x, dequantize(weight).bfloat16()))
    y.sum().backward()
    assert_equal_but_for_rounding(x.grad, dequantize(weight).bfloat16().sum(0).expand(3, -1))


def test_the_backward_pass_keeps_no_decoded_weight():
    weight, kept = frozen((256, 256)), []
    x = torch.randn(2, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
        linear(x, weight)
    assert 256 * 256 // 2 in kept  # the codes, which live anyway
    assert max(kept) == 256 * 256 // 2


def test_the_operator_keeps_the_rules_of_torch():
    parts = codec.encode(torch.randn(128, 256))
    for transposed, width in ((True, 256), (False, 128)):
        x = torch.randn(3, width, requires_grad=True)
        torch.library.opcheck(torch.ops.torchtune_lite.nf4_product, (x, *parts, 128, transposed))


@pytest.mark.parametrize("module", [FrozenNF4Linear, LoRALinear, DoRALinear])
def test_a_compiled_projection_is_one_graph_with_the_same_result(module):
    torch.manual_seed(0)
    rank = {} if module is FrozenNF4Linear else {"rank": 4, "alpha": 8, "quantize_base": True}
    projection = module(128, 256, **rank)
    x = torch.randn(2, 3, 128, requires_grad=True)
    expected = projection(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    compiled = torch.compile(projection, backend="aot_eager", fullgraph=True)(x)
    assert_close(compiled, expected)
    assert_close(torch.autograd.grad(compiled.square().sum(), x)[0], gradient)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("dtype", "adapter"), [(torch.float32, None), (torch.bfloat16, None),
                                                (torch.bfloat16, torch.float32)])  # fmt: skip
@pytest.mark.parametrize("module", [LoRALinear, DoRALinear])
def test_an_adapter_over_nf4_is_that_over_the_dequantised_weight(module, dtype, adapter, checkpointed, dropout):
    torch.manual_seed(0)
    arguments = {"rank": 4, "alpha": 8, "dropout": dropout}
    ours, dense = module(96, 512, **arguments, quantize_base=True), module(96, 512, **arguments)
    ours.weight = frozen((512, 96), dtype)
    dense.weight = nn.Parameter(dequantize(ours.weight), requires_grad=False)
    ours.init_adapter(adapter)
    nn.init.normal_(ours.lora_b.weight, std=0.1)
    dense.init_adapter(adapter)
    x = torch.randn(2, 7, 96).to(dtype)
    results = []
    for projection in (ours, dense):
        for name in ours.adapter_params():
            projection.get_parameter(name).data.copy_(ours.get_parameter(name))
            assert projection.get_parameter(name).dtype == (adapter or dtype)
        given = x.clone().requires_grad_()
        torch.manual_seed(1)  # the same dropout
        y = checkpoint(projection, given, use_reentrant=False) if checkpointed else projection(given)
        y.float().square().sum().backward()
        results.append((y, given.grad, *(projection.get_parameter(name).grad for name in ours.adapter_params())))
    assert results[0][0].dtype == dtype
    for got, expected in zip(*results, strict=True):
        assert_equal_but_for_rounding(got, expected)


@pytest.mark.parametrize("quantised", [False, True])
def test_row_tiles_put_together_are_the_weight(quantised):
    weight = frozen((512, 96)) if quantised else torch.randn(512, 96)
    tiles = [(rows, values.clone()) for rows, values in row_tiles(storage(weight), 512)]
    assert torch.equal(torch.cat([values for _, values in tiles]), dequantize(weight))
    assert [rows.start for rows, _ in tiles[1:]] == [rows.stop for rows, _ in tiles[:-1]]


def test_a_frozen_projection_trains_nothing_and_refuses_a_misfit():
    projection = FrozenNF4Linear(128, 256)
    assert projection(torch.randn(3, 128)).shape == (3, 256)
    assert not any(param.requires_grad for param in projection.parameters())
    with pytest.raises(ValueError, match="16,384"):
        FrozenNF4Linear(100, 100)
