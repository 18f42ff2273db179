"""The meta device in place of a GPU: nothing is computed, but waits of the host are noted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.kernels.nf4.codec import NF4Weight
from torchtune_lite.optim.streams import CopyStream
from torchtune_lite.peft import from_nf4_parts, is_quantized, nf4_parts

META = torch.device("meta")
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_)
VALUES = (aten._local_scalar_dense, aten.equal)  # read by the host
SIZES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.repeat_interleave)  # that follow values


class Waits(TorchDispatchMode):
    """Mode that notes in `seen` each wait for a GPU: a value read, a blocking copy, a size that depends on values.

    Every value read is 1. An operator on tensors of both devices raises AssertionError, as on a GPU; numbers may mix.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if packet in COPIES:
            return self._copy(func, args, kwargs)
        if not any(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        others = [tuple(tensor.shape) for tensor in tensors if not tensor.is_meta and tensor.dim()]
        assert not others, f"{func} is given tensors of two devices; those in host memory are {others}"
        by_mask = packet is aten.index and any(index is not None and index.dtype == torch.bool for index in args[1])
        if packet in VALUES + SIZES or by_mask:
            self.seen.append(str(packet))
        if packet in VALUES:
            return 1 if packet is aten._local_scalar_dense else True
        return func(*args, **kwargs)

    def _copy(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func.overloadpacket is aten.copy_:
            target, source, non_blocking = (*args, False)[:3]
            out, device = target, target.device
        else:
            [source], out = args, None
            device, non_blocking = torch.device(kwargs.get("device") or source.device), kwargs.get("non_blocking")
        if source.device.type == device.type:
            return func(*args, **kwargs)
        if not non_blocking:
            self.seen.append(f"a copy from {source.device.type} to {device.type}")
        if device.type == "meta":
            return func(*args, **kwargs)
        return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype) if out is None else out.fill_(1)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """The waits of the host, including those of `optim`'s streams for copies."""
    mode = Waits()
    monkeypatch.setattr(CopyStream, "wait", lambda stream, mark: mode.seen.append("copies of the optimizer"))
    return mode


@pytest.fixture
def meta_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make recipes choose the meta device and load a model to it."""
    load = FullModelHFCheckpointer.load

    def load_to_meta(self: FullModelHFCheckpointer, model: nn.Module, *, device: torch.device, **how: Any) -> None:
        assert device == META
        load(self, model, device="cpu", **how)
        for name, param in list(model.named_parameters()):
            owner, _, last = name.rpartition(".")
            moved = nn.Parameter(on_meta(param.detach()), requires_grad=param.requires_grad)
            setattr(model.get_submodule(owner), last, moved)

    monkeypatch.setattr(FullModelHFCheckpointer, "load", load_to_meta)
    monkeypatch.setattr("torchtune_lite.training.distributed.get_device", lambda device: META)


def on_meta(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape, dtype and class on the meta device."""
    if not is_quantized(tensor):
        return tensor.to(META)
    return from_nf4_parts(tensor.shape, NF4Weight(*(part.to(META) for part in nf4_parts(tensor))))
