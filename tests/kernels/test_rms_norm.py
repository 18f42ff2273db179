"""RMSNorm in few passes against the plain one."""

import pytest
import torch

from torchtune_lite import kernels
from torchtune_lite.modules import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_output_and_gradients_are_those_of_the_plain_norm(offset, dtype):
    torch.manual_seed(0)
    norm = RMSNorm(64, 1e-3, offset).to(dtype)
    torch.nn.init.uniform_(norm.weight, 0.5 - offset, 1.5 - offset)
    x = torch.randn(3, 5, 64, dtype=dtype, requires_grad=True)
    probe = torch.randn(3, 5, 64, dtype=dtype)
    results = []
    for names in ((), ("rms_norm",)):
        with kernels.plain(*names) if names else kernels.plain("rotary"):
            y = norm(x)
            results.append((y, *torch.autograd.grad(y, [x, norm.weight], probe)))
    assert type(results[0][0].grad_fn).__name__ == "_NormBackward" != type(results[1][0].grad_fn).__name__
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype == dtype
        assert (mine - theirs).norm() <= tolerance * theirs.norm()
