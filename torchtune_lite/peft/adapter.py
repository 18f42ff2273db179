"""The adapter protocol: what is trained of a model whose weights stay, known by its methods, not by its class."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchtune_lite.utils.sharding import as_lies, whole


@runtime_checkable
class Adapter(Protocol):
    """A module with trained parameters in a model that is frozen.

    Its attribute `enabled` False makes it compute as if it were not there; `starts_from_base` says whether it makes its
    start of a weight; `peft_type` is PEFT's name of its method, of which `methods.FILES` has the files. A model of any
    adapters is trained and saved by these members. An adapter is known by its methods: from Python 3.12 on,
    `isinstance` does not find a module's parameters.
    """

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh trained parameters on the device of the frozen ones, in their dtype unless another is given."""

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within the module."""

    def training_state(self) -> dict[str, Tensor]:
        """Return what its file lacks to go on training to the bit."""

    def restore_training(self, state: Mapping[str, Tensor]) -> None:
        """Take that, after the file was loaded."""


@runtime_checkable
class MergeableAdapter(Adapter, Protocol):
    """An adapter put on a matrix, whose frozen `weight [out, in]`, plain or NF4, and `bias` it holds."""

    def start_from(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Look at the weight `[out, in]` before it is quantised, and return what of it is to be the frozen one."""

    def merged_weight(self, base: Tensor | None = None) -> Tensor:
        """Return the weight `[out, in]` of a plain projection of the same function; `base` takes the place of W."""

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of its rows with their values in float32, before they are rounded."""

    def merged_bias(self) -> Tensor | None:
        """Return the bias `[out]` of that plain projection."""

    def as_lora(self, rank: int | None = None) -> nn.Module | None:
        """Return a LoRA of the same function, of `rank` with zeros if it is given; None where there is none.

        Without `rank` it may be a plain projection, where the update is zero.
        """


@runtime_checkable
class Method(Protocol):
    """What `model.adapter` may name: a method of adaptation with its numbers, for one model."""

    def put(self, path: str, base: nn.Module) -> nn.Module:
        """Return an adapter on the projection `path`, plain or NF4, whose weight and bias it takes over."""


def adapter_modules(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of `model` by their full names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def mergeable_modules(model: nn.Module) -> dict[str, MergeableAdapter]:
    """Return those adapters of `model` that are put on a matrix, by their full names."""
    return {name: module for name, module in adapter_modules(model).items() if isinstance(module, MergeableAdapter)}


def is_mergeable(model: nn.Module) -> bool:
    """Return whether weights alone can be of the function of `model`: not with virtual tokens."""
    return len(mergeable_modules(model)) == len(adapter_modules(model))


def is_adapted(model: nn.Module) -> bool:
    """Return whether a part of `model` is trained: adapters, or rows that it gets with its tokenizer."""
    return bool(adapter_modules(model)) or getattr(model, "train_embeddings", None) is not None


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the live adapter parameters of `model` by their full names; empty for a model without adapters."""
    return {
        f"{name}.{param}": module.get_parameter(param)
        for name, module in adapter_modules(model).items()
        for param in module.adapter_params()
    }


def changed_biases(model: nn.Module) -> dict[str, MergeableAdapter]:
    """Return the adapters whose bias is another one when they are merged, by the full names of the biases."""
    return {
        f"{name}.bias": module
        for name, module in mergeable_modules(model).items()
        if module.merged_bias() is not module.bias
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
    """Let `model` compute as its base does for a block of code: the reference of preference training.

    ValueError where a part of the base is trained itself.
    """
    own = adapter_state(model)
    trained = [name for name, param in model.named_parameters() if param.requires_grad and name not in own]
    if own and trained:
        raise ValueError(f"{trained[0]} is trained itself, so that there is no base left to compute as")
    enabled = [module for module in adapter_modules(model).values() if module.enabled]
    for module in enabled:
        module.enabled = False
    try:
        yield
    finally:
        for module in enabled:
            module.enabled = True
