"""The rotation in few passes against the plain one."""

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite import kernels
from torchtune_lite.modules import RotaryPositionalEmbeddings
from torchtune_lite.modules.rope import rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotary_dim", [16, 12])
def test_output_and_gradient_are_those_of_the_plain_rotation(rotary_dim, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, 16, dtype=dtype).transpose(1, 2).requires_grad_()  # as attention has it
    rotation = RotaryPositionalEmbeddings(rotary_dim, 100.0)(torch.arange(7)[None], dtype, torch.tensor([[7]]))
    probe = torch.randn(2, 3, 7, 16, dtype=dtype)
    found = rotate(x, rotation)
    with kernels.plain("rotary"):
        expected = rotate(x, rotation)
    assert type(found.grad_fn).__name__ == "_RotateBackward" != type(expected.grad_fn).__name__
    tolerance = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 1e-2}
    assert_close(found, expected, **tolerance)
    mine, theirs = (torch.autograd.grad(y, x, probe)[0] for y in (found, expected))
    assert_close(mine, theirs, **tolerance)
