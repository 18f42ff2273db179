"""The gradients between the loss and the optimizer step."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchtune_lite.errors import ConfigError, NonFiniteError
from torchtune_lite.optim import StepInBackward
from torchtune_lite.peft import RankAllocator
from torchtune_lite.training.run.progress import Progress
from torchtune_lite.utils.sharding import whole
from torchtune_lite.utils.world import World

INITIAL_SCALE, GROWTH_INTERVAL = 65536.0, 2000  # of torch.amp.GradScaler


class Gradients:
    """Makes the gradients of an optimizer step and clips them: `start`, `backward` of each micro-batch, `clip`.

    `clip_grad_norm` None is not clipped. With `dtype` fp16 the loss is scaled, so that small gradients do not vanish:
    by half as much after a step whose gradients overflow, by twice as much after 2,000 in a row that fit. That is the
    rule of torch's GradScaler, for whose tensors the host would have to wait; the scale is a number in `progress`. With
    `in_backward`, each parameter is updated in the backward pass of the window's last micro-batch, so that the
    gradients of the whole model exist only if the window has others, and `clip_grad_norm` bounds that of each
    parameter. `progress` is that of a resumed run, if it is one. The processes of `world` start from the same
    parameters, and their gradients are summed. `ranks` prunes AdaLoRA's adapters after each step of the optimizer, and
    has its penalty in the gradients, though not in the loss.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        progress: Progress,
        clip_grad_norm: float | None = None,
        dtype: str = "fp32",
        in_backward: bool = False,
        world: World | None = None,
        ranks: RankAllocator | None = None,
    ) -> None:
        if not hasattr(optimizer, "state"):
            raise ConfigError(
                f"optimizer: {type(optimizer).__name__} keeps its state where no checkpoint sees it; "
                "use torchtune_lite.optim.CPUOffloadAdamW or PagedAdamW"
            )
        self.params = [param for group in optimizer.param_groups for param in group["params"]]
        if dtype == "fp16" and in_backward:
            raise ConfigError("optimizer_in_bwd: True steps before dtype: fp16 can see an overflow; set dtype: bf16")
        if dtype == "fp16" and any(param.dtype == torch.float16 for param in self.params):
            raise ConfigError(
                "dtype: fp16 is too coarse for weights that are trained; "
                "set mixed_precision: True, or adapter_dtype: fp32 where adapters are trained"
            )
        self.optimizer, self.progress, self.max_norm = optimizer, progress, clip_grad_norm
        self.world = world or World(self.params[0].device)
        self.world.check_optimizer(optimizer)
        self.world.spread(self.params)
        self.world.draw_alike(optimizer, lambda: f"{progress.seed}/{progress.global_step}")
        fresh = {"scale": INITIAL_SCALE, "_growth_tracker": 0}
        progress.scaler = progress.scaler or fresh if dtype == "fp16" else None
        if ranks is not None and in_backward:
            raise ConfigError("optimizer_in_bwd: True drops the gradients that AdaLoRA prunes by; set it to False")
        if ranks is not None:
            ranks.follow(optimizer, lambda: progress.global_step + 1)
        self.ranks = ranks
        self.in_backward = StepInBackward(optimizer, clip_grad_norm) if in_backward else None

    def start(self, num_batches: int, num_tokens: int) -> None:
        """Begin the step of so many micro-batches here, and of so many label tokens in all processes."""
        self._left, self._loss, self._may_step = num_batches, 0.0, num_tokens > 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch; `in_backward`, that of the last one updates the weights.

        Not if the loss of the step is not finite: then that pass is left out. The host waits to learn it.
        """
        self._left -= 1
        self.world.before_backward(last=self._left == 0)
        if self.in_backward is None:
            (loss * self.progress.scaler["scale"] if self.progress.scaler else loss).backward()
            return
        self._loss += loss.detach()
        last = self._left == 0 and self._may_step
        if last and not math.isfinite(*self.world.sum(self._loss.item())):
            return
        self.in_backward.armed = last
        try:
            loss.backward()
        finally:
            self.in_backward.armed = False

    def clip(self, loss: Tensor) -> tuple[float, float]:
        """Clip the step's gradients, if they still exist; return its `loss` and their norm, both read at once.

        Both are those of all processes, whose gradients are added up first. Here the host waits for the device, and
        without `in_backward` nowhere else in a step. Raise NonFiniteError for a norm that shows only after weights were
        updated in the backward pass.
        """
        if self.in_backward is not None:
            norm = self.in_backward.take_norm()
        else:
            if self.ranks is not None:
                self.backward(self.ranks.penalty() / self.world.size)
            self.world.sum_gradients(self.params)
            grads = [param.grad for param in self.params if param.grad is not None]
            if self.progress.scaler and grads:
                torch._foreach_mul_(grads, 1 / self.progress.scaler["scale"])
            norm = whole(torch.nn.utils.clip_grad_norm_(self.params, self.max_norm or math.inf))
        loss, norm = torch.stack([value.to(loss.device, torch.float32) for value in (loss, norm)]).tolist()
        [loss] = self.world.sum(loss)
        if self.in_backward is not None and not math.isfinite(norm):
            raise NonFiniteError(
                f"step {self.progress.global_step + 1}: grad_norm is {norm}, and with optimizer_in_bwd some "
                "weights are updated already; go on from the last checkpoint with optimizer_in_bwd: False"
            )
        if self.progress.scaler:
            self.progress.scaler = _next_scale(self.progress.scaler, fits=math.isfinite(norm))
        return loss, norm

    def log_values(self) -> dict[str, float]:
        """Return what a step's numbers have besides: the budget of AdaLoRA's ranks and those that have changed."""
        return {} if self.ranks is None else self.ranks.log_values(self.progress.global_step)

    def log_end(self) -> None:
        """Log what the ranks have become."""
        if self.ranks is not None:
            self.ranks.log_end()


def _next_scale(scaler: dict[str, Any], *, fits: bool) -> dict[str, Any]:
    """Return the scale of the next step after one whose gradients fit or overflowed."""
    scale, fitting = scaler["scale"], scaler["_growth_tracker"] + 1
    if not fits:
        scale, fitting = scale / 2, 0
    elif fitting == GROWTH_INTERVAL:
        scale, fitting = scale * 2, 0
    return {"scale": scale, "_growth_tracker": fitting}
