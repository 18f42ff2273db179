"""PyTorch's own files (.pth, .bin): read one tensor at a time, without running the code that a pickle may hold."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from torchtune_lite.checkpoint.formats.safetensors_stream import damage
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError


def read_torch(path: Path) -> dict[str, Weight]:
    """List the tensors of a file by name; their values stay mapped from it.

    CheckpointError for a file that is damaged, older than PyTorch 1.6, would run code, or is not a dictionary of
    tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: would run code, which is refused; get it as safetensors") from error
    except (RuntimeError, ValueError, EOFError) as error:
        problem = damage(path) if path.stat().st_size < 1024 else None
        raise CheckpointError(
            f"{path}: {problem or 'is truncated, or no PyTorch file of version 1.6 or later'}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: is not a plain dictionary of tensors")
    return {name: Weight.of(tensor) for name, tensor in content.items()}
