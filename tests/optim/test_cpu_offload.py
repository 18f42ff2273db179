import torch

from torchtune_lite.optim import CPUOffloadAdamW


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
