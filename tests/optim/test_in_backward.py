"""Steps in the backward pass against steps after it."""

from functools import partial

import pytest
import torch
from torch import nn

from torchtune_lite import optim

OPTIMIZERS = {
    "torch": torch.optim.AdamW,
    "torch, fused": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "master": optim.MasterAdamW,
    "paged": optim.PagedAdamW,
    "offloaded": optim.CPUOffloadAdamW,
}


class Net(nn.Module):
    """Uses its embedding twice, so that a step before the second use would show."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, tokens):
        h = self.embedding(tokens)
        for layer in self.layers:
            h = torch.tanh(layer(h)) + h
        return nn.functional.cross_entropy((h @ self.embedding.weight.t()).flatten(0, 1), tokens.flatten())


def run(make, in_backward, micro_batches=3, max_norm=None):
    torch.manual_seed(0)
    net = Net().bfloat16()
    decayed = [param for param in net.parameters() if param.ndim > 1]
    others = [param for param in net.parameters() if param.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.05}]
    optimizer = make(groups, lr=0.1)
    stepper = optim.StepInBackward(optimizer, max_norm) if in_backward else None
    schedule = optim.get_cosine_schedule_with_warmup(optimizer, 2, 8)
    losses, norms = [], []
    for _ in range(4):
        for i in range(micro_batches):
            loss = net(torch.randint(0, 20, (2, 5)))
            if stepper:
                stepper.armed = i == micro_batches - 1
            loss.backward()
            losses.append(loss.item())
        if stepper:
            assert all(param.grad is None for param in net.parameters())
            norms.append(stepper.take_norm().item())
        else:
            grads = [param.grad.float() for param in net.parameters() if param.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads).item())
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return losses, norms, net.state_dict(), optimizer


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_losses_weights_and_state_are_those_of_the_plain_step_to_the_bit(make, micro_batches):
    losses, norms, weights, optimizer = run(make, False, micro_batches)
    in_backward = run(make, True, micro_batches)
    assert in_backward[0] == losses and in_backward[1] == pytest.approx(norms, rel=1e-5)
    assert all(torch.equal(value, in_backward[2][name]) for name, value in weights.items())
    states = [list(each.state.values()) for each in (optimizer, in_backward[3])]
    steps = [sorted(float(state.get("step", 0)) for state in each) for each in states]
    assert steps[0] == steps[1] and len(steps[0]) == 7
    assert [len(group["params"]) for group in in_backward[3].param_groups] == [4, 4]


def test_gradients_of_the_whole_model_never_exist_at_once():
    torch.manual_seed(0)
    net = Net()
    most = 0

    class Counting(torch.optim.SGD):
        def step(self):
            nonlocal most
            most = max(most, sum(param.grad is not None for param in net.parameters()))

    optim.StepInBackward(Counting(net.parameters(), lr=0.1)).armed = True
    net(torch.arange(5)[None]).backward()
    assert most == 1


def test_each_gradient_is_clipped_by_its_own_norm_and_the_norm_is_that_before():
    torch.manual_seed(0)
    net = Net()
    seen = {}

    class Keeping(torch.optim.SGD):
        def step(self):
            [param] = [param for group in self.param_groups for param in group["params"]]
            seen[param] = param.grad.clone()

    loss = net(torch.arange(5)[None])
    params = [param for param in net.parameters() if param is not net.unused]
    expected = dict(zip(params, torch.autograd.grad(loss, params, retain_graph=True), strict=True))
    bound = sorted(grad.norm().item() for grad in expected.values())[3]
    stepper = optim.StepInBackward(Keeping(net.parameters(), lr=0.1), max_norm=bound)
    stepper.armed = True
    loss.backward()
    assert stepper.take_norm() == pytest.approx(torch.nn.utils.get_total_norm(expected.values()).item(), rel=1e-5)
    assert stepper.take_norm() == 0
    for param, grad in expected.items():
        factor = min(bound / grad.norm().item(), 1)
        assert torch.allclose(seen[param], grad * factor, rtol=1e-4)
    assert sum(not torch.equal(seen[param], grad) for param, grad in expected.items()) >= 3
