"""Optimizer state in a tensor class of torchao, such as that of 8-bit AdamW: as the plain tensors it is made of."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchtune_lite import config
from torchtune_lite.errors import CheckpointError

TRUSTED = "torchao."


def take_apart(tensor: Tensor) -> tuple[dict[str, Tensor], list | None]:
    """Gives the tensors that `tensor` is made of by name, and as plain values what `put_together` needs besides.

    Of a plain tensor, itself by the name "" and None. CheckpointError for a class that is not torchao's.
    """
    if not is_traceable_wrapper_subclass(tensor):
        return {"": tensor}, None
    path = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    names, context = tensor.__tensor_flatten__()
    if not path.startswith(TRUSTED):
        raise CheckpointError(f"optimizer: its state is a {path}, which is not saved; use another optimizer")
    return {name: getattr(tensor, name) for name in names}, [path, *map(_plain, context)]


def put_together(parts: Mapping[str, Tensor], about: list) -> Tensor:
    """Makes the tensor again that `take_apart` gave `parts` and `about` of."""
    path, *context = about
    if not path.startswith(TRUSTED):
        raise CheckpointError(f"optimizer: the checkpoint has a state of class {path}; allowed are those of torchao")
    return config.find(path).__tensor_unflatten__(parts, [_meant(value) for value in context], None, None)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else value


def _meant(value: Any) -> Any:
    return getattr(torch, value.removeprefix("torch.")) if isinstance(value, str) else value
