"""One weight that has not been read yet: what every reader gives and every writer takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """A tensor known by dtype and shape, whose values come from `read()` when they are needed.

    What `read` gives may be mapped from a file or be live in a model: copy it before changing or keeping it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Weight":
        """Wrap a tensor that exists already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def num_bytes(self) -> int:
        """Bytes of the values in a file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read_bytes(self) -> memoryview:
        """Read the values as they lie in a file, row by row."""
        tensor = self.read().detach().cpu().contiguous()
        assert tensor.dtype == self.dtype and tuple(tensor.shape) == self.shape, (tensor.dtype, tensor.shape, self)
        return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
