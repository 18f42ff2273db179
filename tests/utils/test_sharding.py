"""A sharded tensor by its methods; that torch's own has them, `tests/training/test_sharded.py` shows."""

import pytest
import torch
from torch import Tensor

from torchtune_lite.utils.sharding import as_lies, is_sharded, local, rows, spread, whole, with_rows, written_rows


class Mesh:
    """Processes in replicas: `sizes` of the mesh and the place of this one."""

    def __init__(self, sizes: tuple[int, ...], place: tuple[int, ...]) -> None:
        self.sizes, self.place, self.ndim = sizes, place, len(sizes)

    def size(self, dim: int) -> int:
        return self.sizes[dim]

    def get_local_rank(self, dim: int) -> int:
        return self.place[dim]

    def get_coordinate(self) -> list[int]:
        return list(self.place)


class Sharded:
    """As much of a DTensor as is asked."""

    def __init__(self, all_rows: Tensor, mesh: Mesh, own: Tensor | None = None) -> None:
        self.all, self.device_mesh, self.placements, self.shape = all_rows, mesh, (), all_rows.shape
        self.own = all_rows[rows(self)] if own is None else own

    def __len__(self) -> int:
        return len(self.all)

    def stride(self) -> tuple[int, ...]:
        return self.all.stride()

    def to_local(self) -> Tensor:
        return self.own

    def full_tensor(self) -> Tensor:
        return self.all

    @classmethod
    def from_local(cls, own: Tensor, mesh: Mesh, placements: tuple, **how) -> "Sharded":
        return cls(torch.zeros(how["shape"]), mesh, own)


@pytest.mark.parametrize(
    ("number", "processes", "expected"),
    [(8, 2, [(0, 4), (4, 8)]), (5, 4, [(0, 2), (2, 4), (4, 5), (5, 5)]), (1, 2, [(0, 1), (1, 1)])],
)
def test_rows_are_dealt_out_as_torch_chunks_them(number, processes, expected):
    found = [rows(Sharded(torch.zeros(number), Mesh((processes,), (place,)))) for place in range(processes)]
    assert [(each.start, each.stop) for each in found] == expected
    chunks = torch.arange(number).chunk(processes)
    assert [len(chunk) for chunk in chunks] == [stop - start for start, stop in expected if stop > start]


@pytest.mark.parametrize(
    ("place", "own", "all_of_it"),
    [((0, 0), (0, 2), (0, 4)), ((0, 1), (2, 4), (0, 0)), ((1, 0), (0, 0), (0, 0)), ((1, 1), (0, 0), (0, 0))],
)
def test_each_row_is_written_once(place, own, all_of_it):
    sharded = Sharded(torch.arange(4), Mesh((2, 2), place))
    found = written_rows(sharded, sharded), written_rows(torch.arange(4), sharded)
    assert [(each.start, each.stop) for each in found] == [own, all_of_it]


def test_the_rows_of_one_tensor_lie_as_those_of_another():
    sharded, plain = Sharded(torch.arange(4), Mesh((2,), (1,))), torch.arange(4)
    assert is_sharded(sharded) and not is_sharded(plain)
    assert local(sharded).tolist() == [2, 3] and whole(sharded).tolist() == [0, 1, 2, 3]
    assert local(plain) is plain and whole(plain) is plain and rows(plain) == slice(0, 4)
    assert as_lies(sharded, sharded).tolist() == as_lies(plain, sharded).tolist() == [2, 3]
    assert as_lies(sharded, plain).tolist() == as_lies(plain, plain).tolist() == [0, 1, 2, 3]


def test_a_value_takes_the_place_of_a_sharded_one():
    sharded, value = Sharded(torch.arange(4), Mesh((2,), (1,))), torch.arange(4) * 10
    assert local(spread(sharded, value)).tolist() == [20, 30] and spread(value, value) is value
    assert local(with_rows(sharded, value[:2])).tolist() == [0, 10] and with_rows(value, value[:2]).tolist() == [0, 10]
    assert local(spread(sharded, value)).untyped_storage().nbytes() == 16  # no view that keeps the whole
