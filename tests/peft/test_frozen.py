"""A frozen projection in NF4; its products in tests/kernels/nf4/test_linear.py."""

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.peft import FrozenNF4Linear, dequantize, quantize
from torchtune_lite.peft.frozen import linear


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_product_with_its_values_and_the_bias(bias):
    projection, x = FrozenNF4Linear(128, 256, bias), torch.randn(3, 5, 128)
    if bias:
        torch.nn.init.normal_(projection.bias)
    assert_close(projection(x), torch.nn.functional.linear(x, dequantize(projection.weight), projection.bias))
    assert not any(param.requires_grad for param in projection.parameters())
    part = projection.low_rank()
    assert part.bias is projection.bias and part.out_dim == 256 and not part.is_adapted


@pytest.mark.parametrize("quantised", [False, True])
def test_a_bias_is_added_in_the_dtype_of_the_product(quantised):
    weight, bias = torch.randn(128, 128).bfloat16(), torch.randn(128)
    values = quantize(weight) if quantised else weight
    y = linear(torch.randn(2, 128).bfloat16(), values, bias)
    assert y.dtype == torch.bfloat16
