"""The adapter protocol: a frozen projection with a trained change, known by its methods, not by its class."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchtune_lite.utils.sharding import as_lies, whole


@runtime_checkable
class Adapter(Protocol):
    """A module put on a projection, whose frozen `weight [out, in]`, plain or NF4, and `bias` it holds.

    Its attribute `enabled` False makes it compute the projection alone. A method of adaptation is a class with these
    members, and `from_linear(linear, …)` to put it on a projection; a model of any adapters is trained, saved and
    merged by them. It is known by its methods: from Python 3.12 on, `isinstance` does not find a module's parameters.
    """

    def start_from(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Look at the weight `[out, in]` before it is quantised, and return what of it is to be the frozen one."""

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh trained parameters on the device of the weight, in its dtype unless another is given."""

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within the module."""

    def merged_weight(self, base: Tensor | None = None) -> Tensor:
        """Return the weight `[out, in]` of a plain projection of the same function; `base` takes the place of W."""

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of its rows with their values in float32, before they are rounded."""


def adapter_modules(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of `model` by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the live adapter parameters of `model` by their full names; empty for a model without adapters."""
    return {
        f"{name}.{param}": module.get_parameter(param)
        for name, module in adapter_modules(model).items()
        for param in module.adapter_params()
    }


def rows_here(module: Adapter) -> dict[str, Tensor]:
    """Return the parameters of a projection with an adapter, of those rows that are here of its weight.

    Those in the module's `input_params`, which have no row for each output, are whole; all processes ask for them.
    """
    of_input = getattr(module, "input_params", ())
    return {
        name: whole(param) if name in of_input else as_lies(param, module.weight)
        for name, param in module.named_parameters()
    }


def freeze_base(model: nn.Module) -> None:
    """Leave only the adapter parameters of `model` to be trained."""
    trained = adapter_state(model)
    for name, param in model.named_parameters():
        param.requires_grad_(name in trained)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let `model` compute as its base does for a block of code: the reference of preference training."""
    enabled = [module for module in adapter_modules(model).values() if module.enabled]
    for module in enabled:
        module.enabled = False
    try:
        yield
    finally:
        for module in enabled:
            module.enabled = True
