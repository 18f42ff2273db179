"""A tensor of which each of several processes has some rows: torch's DTensor, known by its methods.

A plain tensor is whole, and stays as it is in all of these. With whole replicas, the processes of one have its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each process has some rows of a tensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that are here, without a gradient."""
    import torch

    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def whole(tensor: Tensor) -> Tensor:
    """Return all rows of a tensor, which every process must ask for."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def rows(tensor: Tensor) -> slice:
    """Say which rows of a tensor are here: as many for each process, fewer or none for the last."""
    if not is_sharded(tensor):
        return slice(0, len(tensor))
    mesh, number = tensor.device_mesh, len(tensor)
    each = -(-number // mesh.size(mesh.ndim - 1))
    start = min(each * mesh.get_local_rank(mesh.ndim - 1), number)
    return slice(start, min(start + each, number))


def written_rows(tensor: Tensor, sharded: Tensor) -> slice:
    """Say which rows of a tensor this process writes to a file: its own, or of what is whole all or none.

    The first replica alone writes any, and of it the first process what is whole; `sharded` is a tensor that is.
    """
    mesh = sharded.device_mesh
    *replica, position = mesh.get_coordinate()
    if any(replica) or (position and not is_sharded(tensor)):
        return slice(0, 0)
    return rows(tensor)


def with_rows(tensor: Tensor, own: Tensor) -> Tensor:
    """Return `own`, or where `tensor` is sharded, one sharded as it is of which these are the rows here."""
    if not is_sharded(tensor):
        return own
    how = {"run_check": False, "shape": tensor.shape, "stride": tensor.stride()}
    return type(tensor).from_local(own, tensor.device_mesh, tensor.placements, **how)


def spread(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a whole `value`, or where `tensor` is sharded, a copy of its rows here, sharded as it is."""
    return with_rows(tensor, value[rows(tensor)].clone()) if is_sharded(tensor) else value


def as_lies(tensor: Tensor, other: Tensor) -> Tensor:
    """Return those rows of a tensor that are here of `other`, which has as many; all of them if that is whole."""
    if is_sharded(tensor):
        return local(tensor) if is_sharded(other) else whole(tensor)
    return tensor[rows(other)] if is_sharded(other) else tensor
