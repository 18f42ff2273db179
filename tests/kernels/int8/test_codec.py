"""A weight in int8 is the weight to half a step of each row."""

import pytest
import torch

from torchtune_lite.kernels.int8.codec import decode, encode


@pytest.mark.parametrize("shape", [(1, 1), (16, 4), (17, 5), (100, 63), (64, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_value_is_within_half_a_step(shape, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]).to(dtype)
    found = decode(encode(weight))
    assert found.shape == shape
    assert ((found - weight.float()).abs() <= 0.501 * weight.float().abs().amax(1, keepdim=True) / 127).all()
    assert torch.equal(encode(found).values, encode(weight).values)


def test_a_row_of_zeros_stays_one():
    weight = torch.randn(20, 8)
    weight[3] = 0
    assert not decode(encode(weight))[3].any() and decode(encode(weight))[4].any()


def test_a_weight_takes_a_byte_a_value_and_a_scale_a_row():
    assert encode(torch.randn(64, 128)).num_bytes == 64 * 128 + 64 * 4
