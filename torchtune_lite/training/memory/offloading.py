"""Activations that wait for the backward pass in the host's memory instead of the GPU's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from torchtune_lite.peft import storage

LEAST = 1024
"""Bytes from which on a tensor is worth the move (torchtune's number)."""
AHEAD = 2
"""Tensors that are on their way back while another is in use."""


def offload_activations(model: nn.Module) -> None:
    """Make each training forward pass of `model`, on a GPU, keep its activations in pinned memory of the host.

    Weights and small tensors stay. With activation checkpointing these are the inputs of the layers, whose way out and
    back lies beside the computation; without it, all that is saved. Gradients keep their bits.
    """
    hooks: list[OffloadedActivations] = []

    def enter(module: nn.Module, args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            hooks.append(OffloadedActivations(module))
            hooks[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if hooks:
            hooks.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


class OffloadedActivations(saved_tensors_hooks):
    """The tensors that one forward pass of `model` saves: those that `is_moved` picks are moved out and back.

    They go and come on a stream of their own, in pinned memory; while one is used, those saved before it, which are
    needed next, are on their way.
    """

    def __init__(self, model: nn.Module, is_moved: Callable[[Tensor], bool] = lambda tensor: tensor.is_cuda) -> None:
        super().__init__(self._pack, self._unpack)
        self.is_moved, self.device = is_moved, next(model.parameters()).device
        self.weights = {part.untyped_storage().data_ptr() for p in model.parameters() for part in storage(p)}
        self.out: list[Tensor] = []  # on the host
        self.back: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}  # again on the device, from the event on
        self.fetched: set[int] = set()
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _pack(self, tensor: Tensor) -> Tensor | int:
        is_weight = tensor.untyped_storage().data_ptr() in self.weights
        if is_weight or tensor.numel() * tensor.itemsize < LEAST or not self.is_moved(tensor):
            return tensor
        copy = torch.empty_like(tensor, device="cpu", pin_memory=self.stream is not None)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which computes the tensor
            tensor.record_stream(self.stream)  # or its memory would be used again before it is copied
        with torch.cuda.stream(self.stream):  # of None: no effect
            copy.copy_(tensor, non_blocking=True)
        self.out.append(copy)
        return len(self.out) - 1

    def _unpack(self, packed: Tensor | int) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        self._fetch(packed)
        tensor, arrival = self.back.pop(packed)
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)
            tensor.record_stream(torch.cuda.current_stream(self.device))  # or the next would overwrite it in use
        for number in range(max(packed - AHEAD, 0), packed):
            if number not in self.fetched:
                self._fetch(number)
        return tensor

    def _fetch(self, number: int) -> None:
        if number not in self.back:
            self.fetched.add(number)
            with torch.cuda.stream(self.stream):
                tensor = self.out[number].to(self.device, non_blocking=True, copy=True)
            self.back[number] = tensor, None if self.stream is None else self.stream.record_event()
