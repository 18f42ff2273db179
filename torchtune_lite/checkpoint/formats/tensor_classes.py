"""Optimizer state in a tensor class of torchao, such as that of 8-bit AdamW: as the plain tensors it is made of."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchtune_lite.errors import CheckpointError
from torchtune_lite.utils.sharding import is_sharded

TRUSTED = "torchao."  # of what the optimizer has loaded, the classes of tensors


def flatten_tensor(tensor: Tensor) -> tuple[dict[str, Tensor], list | None]:
    """Return the tensors that `tensor` is made of by name, and as plain values what `unflatten_tensor` needs besides.

    Of a plain or sharded tensor, itself by the name "" and None. CheckpointError for a class that is not torchao's.
    """
    if is_sharded(tensor) or not is_traceable_wrapper_subclass(tensor):
        return {"": tensor}, None
    path = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    names, context = tensor.__tensor_flatten__()
    if not path.startswith(TRUSTED):
        raise CheckpointError(f"optimizer: its state is a {path}, which is not saved; use another optimizer")
    return {name: getattr(tensor, name) for name in names}, [path, *map(_plain, context)]


def unflatten_tensor(parts: Mapping[str, Tensor], about: list) -> Tensor:
    """Make the tensor of which `flatten_tensor` gave `parts` and `about`; import nothing that a checkpoint names."""
    path, *context = about
    module, _, name = str(path).rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module.startswith(TRUSTED) else None
    if not (isinstance(found, type) and issubclass(found, Tensor) and hasattr(found, "__tensor_unflatten__")):
        raise CheckpointError(f"optimizer: the checkpoint has a state of class {path}; allowed are those of torchao")
    return found.__tensor_unflatten__(parts, [_meant(value) for value in context], None, None)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else value


def _meant(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"optimizer: the checkpoint has {value!r} for a dtype; was it written by hand?")
    return dtype
