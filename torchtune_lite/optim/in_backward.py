"""The optimizer step as a part of the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchtune_lite.utils.sharding import whole


class StepInBackward:
    """Lets `optimizer` update each parameter as soon as its gradient is whole, and drops the gradient at once.

    Only while `armed`, which must be one backward pass a step: in others gradients are kept and added up. `max_norm`
    clips the gradient of each parameter by its own norm, as that of all is known too late; None: not clipped.
    """

    def __init__(self, optimizer: Optimizer, max_norm: float | None = None) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        self.armed = False
        self._norms: dict[Tensor, Tensor] = {}
        for index, group in enumerate(optimizer.param_groups):
            for param in group["params"]:
                param.register_post_accumulate_grad_hook(partial(self._step, index))

    @torch.no_grad()
    def _step(self, index: int, param: Tensor) -> None:
        if not self.armed:
            return
        self._norms[param] = norm = whole(torch.linalg.vector_norm(param.grad, dtype=torch.float32))
        if self.max_norm is not None:
            param.grad.mul_((self.max_norm / (norm + 1e-6)).clamp(max=1.0))
        with self._alone(index, param):
            self.optimizer.step()
        param.grad = None

    @contextmanager
    def _alone(self, index: int, param: Tensor) -> Iterator[None]:
        """Let the optimizer see one parameter only, the others may hold gradients that are not whole."""
        groups = self.optimizer.param_groups
        everyone = [group["params"] for group in groups]
        try:
            for i, group in enumerate(groups):
                group["params"] = [param] if i == index else []
            yield
        finally:
            for group, params in zip(groups, everyone, strict=True):
                group["params"] = params

    def take_norm(self) -> Tensor:
        """Return the norm of all gradients since the last time, before they were clipped: 0 without any."""
        order = [param for group in self.optimizer.param_groups for param in group["params"]]
        norms = [self._norms[param] for param in order if param in self._norms]
        self._norms = {}
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=order[0].device)
