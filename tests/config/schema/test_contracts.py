from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pytest
import torch
from torch import nn

from torchtune_lite.config.schema.contracts import built_misfit, calls, function_misfit, misfit


class Loss(Protocol):
    def __call__(self, output, hidden, labels): ...


class Optimizer(Protocol):
    param_groups: list

    def step(self): ...

    def zero_grad(self, set_to_none): ...


class Adapted(Optimizer):
    @staticmethod
    def problem(built):
        return "" if built.param_groups else "has no groups"


class Fits(nn.Module):
    def forward(self, output, hidden, labels, weight=1.0): ...


class OtherNames(nn.Module):
    def forward(self, head, states, targets): ...


class Two(nn.Module):
    def forward(self, logits, labels): ...


class Swapped(nn.Module):
    def forward(self, hidden, output, labels): ...


class Four(nn.Module):
    def forward(self, output, hidden, labels, weight): ...


class Plain:
    def __call__(self, output, hidden, labels): ...


class Open:
    def __call__(self, *args, **kwargs): ...


class Static:
    @staticmethod
    def __call__(output, hidden, labels): ...


class NotCallable:
    def compute(self, output, hidden, labels): ...


class ForwardAlone:
    def forward(self, output, hidden, labels): ...


def makes_two() -> Two: ...


def makes_anything() -> Any: ...


def makes_untold(): ...


@pytest.mark.parametrize(
    "target",
    [Fits, OtherNames, Plain, Open, Static, nn.Module, partial(Fits), makes_anything, makes_untold, lambda: None],
)
def test_what_can_be_called_so_or_does_not_tell(target):
    assert misfit(target, Loss) == ""


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (Two, "has forward(logits, labels), and the recipe calls forward(output, hidden, labels)"),
        (makes_two, "has forward(logits, labels), and the recipe calls forward(output, hidden, labels)"),
        (partial(Two), "has forward(logits, labels), and the recipe calls forward(output, hidden, labels)"),
        (Swapped, "has forward(hidden, output, labels), and the recipe calls forward(output, hidden, labels)"),
        (Four, "has forward(output, hidden, labels, weight), and the recipe calls forward(output, hidden, labels)"),
        (nn.CrossEntropyLoss, "has forward(input, target), and the recipe calls forward(output, hidden, labels)"),
        (NotCallable, "has no __call__(output, hidden, labels), which the recipe calls"),
        (ForwardAlone, "has no forward(output, hidden, labels), which the recipe calls"),
    ],
)
def test_what_cannot_be_called_so_is_known_before_it_is_built(target, problem):
    assert misfit(target, Loss) == problem
    if isinstance(target, type):
        assert built_misfit(target(), Loss) == problem


@pytest.mark.parametrize("function", [lambda output, hidden, labels: 0, Plain(), Fits(), lambda *args: 0])
def test_a_built_object_may_be_a_function(function):
    assert built_misfit(function, Loss) == ""


def test_a_built_function_with_other_arguments_is_named():
    def two(logits, labels=None, /): ...

    assert built_misfit(two, Loss) == "has two(logits, labels=…), and the recipe calls two(output, hidden, labels)"


OPTIMIZERS = [each for each in vars(torch.optim).values() if isinstance(each, type) and each is not torch.optim.LBFGS]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: each.__name__)
def test_each_optimizer_of_torch_but_the_one_that_needs_a_closure_fits(optimizer):
    assert misfit(optimizer, Optimizer) == ""


def test_the_one_that_needs_a_closure_does_not():
    assert misfit(torch.optim.LBFGS, Optimizer) == "has step(closure), and the recipe calls step()"
    built = torch.optim.LBFGS([nn.Parameter(torch.ones(1))])
    assert built_misfit(built, Optimizer) == "has step(closure), and the recipe calls step()"


def test_attributes_and_the_contracts_own_problem_are_asked_of_what_is_built():
    class Bare:
        def step(self): ...

        def zero_grad(self, set_to_none=True): ...

    bare = Bare()
    assert misfit(Bare, Adapted) == ""
    assert built_misfit(bare, Adapted) == "has no attribute 'param_groups', which the recipe reads"
    bare.param_groups = []
    assert (built_misfit(bare, Optimizer), built_misfit(bare, Adapted)) == ("", "has no groups")


def test_an_annotation_is_a_contract_too():
    contract = Callable[[dict], bool]
    assert list(calls(contract)["__call__"]) == ["dict"]
    assert calls(Callable[..., int]) == {}
    assert function_misfit(lambda row: True, contract) == function_misfit(Open, contract) == ""
    assert "has <lambda>(), and the recipe calls" in function_misfit(lambda: True, contract)
    assert "has __call__(output, hidden, labels), and" in function_misfit(Plain, contract)


def test_a_builtin_that_does_not_tell_its_arguments_fits():
    assert built_misfit(max, Loss) == ""
