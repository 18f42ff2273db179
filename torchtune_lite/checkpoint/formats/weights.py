"""One weight that has not been read yet: what every reader gives and every writer takes."""

from collections.abc import Callable, Sequence
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

    def rows(self, start: int, stop: int) -> "Weight":
        """Return the rows from `start` on, up to `stop`."""
        return Weight(self.dtype, (stop - start, *self.shape[1:]), lambda: self.read()[start:stop])

    def mapped(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> "Weight":
        """Return the weight with its values changed as they are read, to others of its shape, of `dtype` or its own."""
        return Weight(dtype or self.dtype, self.shape, lambda: change(self.read()))

    def to(self, dtype: torch.dtype) -> "Weight":
        """Return the weight with its values cast as they are read."""
        return self.mapped(lambda values: values.to(dtype), dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of the values in a file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read_bytes(self) -> memoryview:
        """Read the values as they lie in a file, row by row."""
        tensor = self.read().detach().cpu().contiguous()
        assert tensor.dtype == self.dtype and tuple(tensor.shape) == self.shape, (tensor.dtype, tensor.shape, self)
        return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def with_mean_rows(weight: Weight, count: int) -> Weight:
    """Return a matrix with `count` more rows, each the mean of the others, which is summed in float32."""

    def read() -> Tensor:
        rows = weight.read()
        mean = rows.mean(dim=0, dtype=torch.promote_types(rows.dtype, torch.float32), keepdim=True).to(rows.dtype)
        return torch.cat([rows, mean.expand(count, -1)])

    return Weight(weight.dtype, (weight.shape[0] + count, *weight.shape[1:]), read)


def joined(parts: Sequence[Weight]) -> Weight:
    """Return one weight of the rows of several, which have the same dtype and width."""
    rows = sum(part.shape[0] for part in parts)
    return Weight(parts[0].dtype, (rows, *parts[0].shape[1:]), lambda: torch.cat([part.read() for part in parts]))
