"""Checks on the meta device in place of a GPU, which can themselves fail."""

import pytest
import torch

from tests.waits import META, Waits


def seen(run):
    with Waits() as waits:
        run(torch.ones(3, 3).to(META, non_blocking=True))
    return waits.seen


@pytest.mark.parametrize(
    ("what", "run"),
    [
        ("aten._local_scalar_dense", lambda x: x.sum().item()),
        ("aten._local_scalar_dense", lambda x: float(x.sum())),
        ("aten._local_scalar_dense", lambda x: bool(x.sum() > 0)),
        ("aten.equal", lambda x: torch.equal(x, x)),
        ("a copy from meta to cpu", lambda x: x.tolist()),
        ("a copy from meta to cpu", lambda x: x.cpu()),
        ("a copy from meta to cpu", lambda x: torch.ones(3, 3).copy_(x)),
        ("a copy from cpu to meta", lambda x: torch.ones(2).to(META)),
        ("a copy from cpu to meta", lambda x: x.copy_(torch.ones(3, 3))),
    ],
)
def test_what_makes_the_host_wait_is_seen(what, run):
    assert seen(run) == [what]


@pytest.mark.parametrize("run", [lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.masked_select(x > 0)])
def test_sizes_that_follow_values_are_seen_and_end_the_walk(run):
    with Waits() as waits, pytest.raises(NotImplementedError):
        run(torch.ones(3, 3).to(META, non_blocking=True))
    assert waits.seen


@pytest.mark.parametrize(
    "run",
    [
        lambda x: torch.ones(2).to(META, non_blocking=True),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.copy_(torch.ones(3, 3), non_blocking=True),
        lambda x: (x @ x + 1).softmax(-1)[x.argmax(-1)],
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.zeros(3, device=META),
        lambda x: torch.ones(2).sum().item(),
    ],
)
def test_what_does_not_is_not(run):
    assert seen(run) == []


def test_a_wait_in_the_backward_pass_is_seen():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    assert seen(lambda x: Reads.apply(x.requires_grad_()).sum().backward()) == ["aten._local_scalar_dense"]


@pytest.mark.parametrize(
    "run", [lambda x: x + torch.ones(3), lambda x: x @ torch.ones(3, 3), lambda x: x[torch.tensor([1])]]
)
def test_tensors_of_two_devices_are_refused(run):
    with pytest.raises(AssertionError, match="tensors of two devices"):
        seen(run)
