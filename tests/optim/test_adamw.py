"""AdamW for bfloat16 weights, against torch's, on the CPU, where off-device state is computed in the same way."""

import pytest
import torch

from torchtune_lite import optim
from torchtune_lite.errors import ConfigError
from torchtune_lite.optim.rounding import join

SHAPES = [(37,), (129, 257), (3, 5, 7), (1,)]
OURS = [optim.MasterAdamW, optim.StochasticAdamW, optim.PagedAdamW, optim.CPUOffloadAdamW]


def trained(cls, dtype=torch.float32, *, bucket=None, steps=4, device="cpu", **options):
    """The parameters after a few steps, and their optimizer; random values are representable in bfloat16."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).bfloat16().to(device, dtype)) for shape in SHAPES]
    optimizer = cls(params, lr=1e-2, weight_decay=0.1, **options)
    if bucket:
        optimizer.bucket = bucket
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for param in params:
            grad = torch.randn(param.shape, generator=generator).bfloat16().to(device, dtype)
            param.grad = None if step == 1 and param is params[0] else grad
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("bucket", [None, 1000])
@pytest.mark.parametrize("cls", OURS)
def test_float32_weights_are_those_of_torch_to_the_bit(cls, bucket, device):
    there = "cpu" if cls is optim.CPUOffloadAdamW else device  # where it computes
    expected, theirs = trained(torch.optim.AdamW, fused=True, device=there)
    params, ours = trained(cls, bucket=bucket, device=device)
    for param, other in zip(params, expected, strict=True):
        assert torch.equal(param.cpu(), other.cpu())
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[param][key].cpu(), theirs.state[other][key].cpu()), key


@pytest.mark.parametrize("cls", [optim.MasterAdamW, optim.PagedAdamW, optim.CPUOffloadAdamW])
def test_the_master_of_a_bfloat16_weight_is_the_weight_of_a_float32_run(cls):
    expected, _ = trained(torch.optim.AdamW, fused=True)
    params, ours = trained(cls, torch.bfloat16, bucket=1000)
    for param, master in zip(params, expected, strict=True):
        state = ours.state[param]
        assert torch.equal(state["master"] if "master" in state else join(param.detach(), state["remainder"]), master)
        assert torch.allclose(param.float(), master, rtol=2**-8)


def drift(cls, device="cpu", **options):
    """The sum of 64 updates of 1e-4 to weights of 1, where the next bfloat16 is 0.0039 away."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16, device=device))
    optimizer = cls([param], lr=1e-4, weight_decay=0.0, **options)
    for _ in range(64):
        param.grad = torch.ones_like(param)
        optimizer.step()
    return 1 - param.float().mean().item()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_updates_that_bfloat16_loses_count(device):
    assert drift(torch.optim.AdamW, device, fused=True) == 0
    assert drift(optim.MasterAdamW, device) == pytest.approx(64e-4, abs=2**-9)
    assert drift(optim.StochasticAdamW, device) == pytest.approx(64e-4, rel=0.1)


def test_the_stochastic_state_is_bfloat16():
    params, optimizer = trained(optim.StochasticAdamW, torch.bfloat16)
    assert {value.dtype for key, value in optimizer.state[params[1]].items() if key != "step"} == {torch.bfloat16}
    assert not torch.equal(trained(optim.StochasticAdamW, torch.bfloat16, steps=3)[0][1], params[1])


def test_float16_weights_are_refused():
    with pytest.raises(ConfigError, match="MasterAdamW trains float32 and bfloat16, not torch.float16; set"):
        optim.MasterAdamW([torch.nn.Parameter(torch.ones(2).half())])
