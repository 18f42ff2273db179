import pytest
import torch

from tests.optim.test_adamw import trained
from tests.optim.test_paged import step_of_two_buckets
from torchtune_lite.optim import CPUOffloadAdamW, cpu_offload


def test_the_weight_is_the_rounded_master_which_starts_as_the_weight():
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50, 7).bfloat16())
    optimizer = CPUOffloadAdamW([param], lr=1e-3)
    assert torch.equal(optimizer.new_state(param)["master"], param.detach().float())
    param.grad = torch.randn_like(param)
    optimizer.step()
    master = optimizer.state[param]["master"]
    assert master.dtype == torch.float32 and not torch.equal(master, param.float())
    assert torch.equal(param, master.bfloat16())


def test_the_host_waits_for_the_gradients_of_a_bucket_while_those_of_the_next_come_in(monkeypatch):
    assert step_of_two_buckets(CPUOffloadAdamW, cpu_offload, monkeypatch) == [
        *("results out", "mark 0", "results out", "mark 1"),
        *("host waits for mark 0", "compute", "state in"),
        *("host waits for mark 1", "compute", "state in"),
        *("mark 2", "device waits for mark 2"),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_what_it_is_on_a_cpu(dtype):
    expected, _ = trained(CPUOffloadAdamW, dtype, steps=8)
    params, _ = trained(CPUOffloadAdamW, dtype, device="cuda", steps=8, bucket=1000)
    for param, other in zip(params, expected, strict=True):
        assert torch.equal(param.cpu(), other)
