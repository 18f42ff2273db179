"""One weight that has not been read yet: what every reader gives and every writer takes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from torchtune_lite.utils.sharding import is_sharded, local, written_rows


@dataclass(frozen=True)
class Weight:
    """A tensor known by dtype and shape, whose values come from `read()` when they are needed.

    What `read` gives may be mapped from a file or be live in a model: copy it before changing or keeping it.
    `read_rows(first, last + 1)` reads these rows and no others, where that can be done. Of a weight of a model that
    several processes hold, `read` gives the rows `own`, which this process is to write, and all of them call it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    read_rows: Callable[[int, int], Tensor] | None = None
    own: slice | None = None
    parts: Sequence["Weight"] = ()  # of whose rows it consists

    @classmethod
    def of(cls, tensor: Tensor) -> "Weight":
        """Wrap a tensor that exists already."""
        weight = cls(tensor.dtype, tuple(tensor.shape), lambda: local(tensor))
        return weight.of_shards(written_rows(tensor, tensor)) if is_sharded(tensor) else weight

    def of_shards(self, own: slice) -> "Weight":
        """Return the weight of a model that several processes hold, whose rows `own` this one writes."""
        return replace(self, read=lambda: self.read()[: own.stop - own.start], own=own)

    def part(self, first: int, end: int) -> Tensor:
        """Read the rows from `first` on, before `end`."""
        if (first, end) == (0, *self.shape)[:2]:
            return self.read()
        return self.read()[first:end] if self.read_rows is None else self.read_rows(first, end)

    def rows(self, start: int, stop: int) -> "Weight":
        """Return the rows from `start` on, up to `stop`."""
        read = partial(self.part, start, stop)
        return Weight(self.dtype, (stop - start, *self.shape[1:]), read, lambda a, b: self.part(start + a, start + b))

    def mapped(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> "Weight":
        """Return the weight with its values changed as they are read, to others of its shape, of `dtype` or its own."""
        return Weight(dtype or self.dtype, self.shape, lambda: change(self.read()))

    def to(self, dtype: torch.dtype) -> "Weight":
        """Return the weight with its values cast as they are read."""
        return self.mapped(lambda values: values.to(dtype), dtype)

    def pieces(self, *, leads: bool) -> Iterator[tuple[int, Tensor]]:
        """Yield what this process writes of the weight: runs of rows, each with the number of its first.

        What is not shared out, that process writes which `leads`.
        """
        if self.parts:
            first = 0
            for part in self.parts:
                yield from ((first + row, values) for row, values in part.pieces(leads=leads))
                first += part.shape[0]
        elif self.own is not None or leads:
            own = self.own or slice(0, self.shape[0] if self.shape else 1)
            values = self.read()
            assert values.dtype == self.dtype and values.shape[1:] == self.shape[1:], (values.shape, self)
            assert values.shape[:1] in ((), (own.stop - own.start,)), (values.shape, self)
            yield own.start, values

    @property
    def num_bytes(self) -> int:
        """Bytes of the values in a file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def as_bytes(values: Tensor) -> memoryview:
    """Return the values as they lie in a file, row by row."""
    return memoryview(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def with_mean_rows(weight: Weight, count: int) -> Weight:
    """Return a matrix with `count` more rows, each the mean of the others, which is summed in float32."""

    def read() -> Tensor:
        rows = weight.read()
        mean = rows.mean(dim=0, dtype=torch.promote_types(rows.dtype, torch.float32), keepdim=True).to(rows.dtype)
        return torch.cat([rows, mean.expand(count, -1)])

    return Weight(weight.dtype, (weight.shape[0] + count, *weight.shape[1:]), read)


def joined(parts: Sequence[Weight]) -> Weight:
    """Return one weight of the rows of several, which have the same dtype and width."""
    shape = sum(part.shape[0] for part in parts), *parts[0].shape[1:]
    return Weight(parts[0].dtype, shape, lambda: torch.cat([part.read() for part in parts]), parts=parts)
