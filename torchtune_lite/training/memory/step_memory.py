"""The memory that a training step takes, counted from what one layer and the loss are seen to allocate."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchtune_lite.data import Batch
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.peft import is_quantized, num_bytes
from torchtune_lite.peft.tokens.virtual_tokens import VirtualTokensDecoder
from torchtune_lite.training.step.losses import known_rows
from torchtune_lite.utils import to_device


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step with the largest micro-batch; a checkpointed layer keeps its input, another all of `kept`."""

    num_layers: int
    weights: int
    gradients: int  # of all that is trained
    layer_gradients: int  # of one layer
    output_gradients: int  # of the output projection
    hidden: int  # the states between two layers
    kept: int  # from a layer's forward to its backward pass, its output included
    working: int  # in a layer's backward pass, beside what it kept
    loss: int  # the final norm and the loss, forward and backward
    accumulates: bool = False  # gradients are there from the micro-batch before

    def peak(self, checkpointed: int) -> int:
        """Return the most that is held at a time, from the second step on, if the first so many layers are recomputed.

        Two moments of Adam, as trained, are taken for the optimizer's state. The layers that keep everything are the
        last, so that theirs is free again when the first layer is recomputed.
        """
        kept_layers = self.num_layers - checkpointed
        inputs = (1 + checkpointed) * self.hidden
        forward = inputs + kept_layers * self.kept
        recompute = self.kept + self.working
        of_layers = self.num_layers * self.layer_gradients
        moments = [  # activations, and the gradients that are there with them
            (forward + self.loss, 0),
            (forward + (self.working if kept_layers else recompute), self.output_gradients),
            (self.hidden + recompute, self.output_gradients + of_layers - self.layer_gradients),
            (0, self.gradients),
        ]
        if checkpointed:
            moments.append((inputs + recompute, self.output_gradients + kept_layers * self.layer_gradients))
        most = max(used + (self.gradients if self.accumulates else made) for used, made in moments)
        return self.weights + 2 * self.gradients + most


def count_step(
    model: TransformerDecoder, loss_fn: Callable[..., Tensor], batch: Batch, *, accumulates: bool = False
) -> StepMemory:
    """Count the memory of a training step of `model`, whose layers are alike, with `batch`.

    Runs one layer and the loss, forward and backward, and changes nothing. What torch's kernels take for themselves is
    not seen.
    """
    device = model.tok_embeddings.weight.device
    tokens, labels, lengths = to_device(batch["tokens"], device), batch["labels"], batch.get("seq_lens")
    rows, labels = known_rows(loss_fn, labels, device), to_device(labels, device)
    layer = model.layers[0]
    random = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with random, torch.enable_grad(), Allocations() as memory:
        longer = tokens
        if isinstance(model, VirtualTokensDecoder):
            longer, lengths = model.with_room(tokens, lengths)
        states = model.tok_embeddings(longer).detach().requires_grad_()  # [b, s, d]
        rotations, mask = model.rotations(longer, seq_lens=lengths)
        kept, layer_most = memory.of(lambda: layer(states, rotations[layer.kind], mask), [states, *_trained(layer)])
        last = states[:, : tokens.shape[1]].detach().requires_grad_()
        _, loss = memory.of(
            lambda: loss_fn(model.output, model.norm(last), labels, **rows),
            [last, *_trained(model.norm, model.output)],
        )
    return StepMemory(
        num_layers=len(model.layers),
        weights=sum(map(num_bytes, model.parameters())),
        gradients=sum(map(num_bytes, _trained(model))),
        layer_gradients=sum(map(num_bytes, _trained(layer))),
        output_gradients=sum(map(num_bytes, _trained(model.output))),
        hidden=num_bytes(states),
        kept=kept,
        working=layer_most - kept + _workspace(layer),
        loss=loss + _workspace(model.output),
        accumulates=accumulates,
    )


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, `now` and at most, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for tensor in self._tensors((args, kwargs)):  # not yet seen: made before
            self._know(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in self._tensors(result):
            self._know(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return result

    def of(self, forward: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[int, int]:
        """Return the bytes that are held after `forward`, and the most in it and in the gradient of `inputs`."""
        before = self.most = self.now
        output = forward()
        kept = self.now - before
        torch.autograd.grad(output, inputs, torch.ones_like(output), allow_unused=True)
        return kept, self.most - before

    @staticmethod
    def _tensors(tree: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not is_quantized(leaf)]

    def _know(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _trained(*modules: nn.Module) -> list[Tensor]:
    return [param for module in modules for param in module.parameters() if param.requires_grad]


def _workspace(module: nn.Module) -> int:
    """Return the bytes of the largest NF4 weight decoded, which a GPU does whole and a CPU in small tiles."""
    quantized = [p for p in module.parameters() if is_quantized(p) and p.device.type != "cpu"]
    return max((p.numel() * p.dtype.itemsize for p in quantized), default=0)
