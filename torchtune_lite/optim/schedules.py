"""Learning-rate schedules with linear warm-up: each returns a `LambdaLR` that is stepped once per optimizer step.

The factor rises from 0 at the first step to 1 at step `num_warmup_steps` (0: no warm-up). The recipe passes `optimizer`
and `num_training_steps`, the optimizer steps of the whole run over all epochs; past them the last factor stays.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import counted, get_logger


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Follow a cosine down to 0; `num_cycles` counts its waves (0.5: from 1 to 0 once)."""

    def factor(done: int, left: int) -> float:
        return max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * num_cycles * done / (done + left))))

    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, factor, last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Fall in a straight line to 0."""

    def factor(done: int, left: int) -> float:
        return left / (done + left)

    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, factor, last_epoch)


def get_constant_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Stay at the optimizer's rate; `num_training_steps` None is a run of unknown length."""
    num_training_steps = num_warmup_steps if num_training_steps is None else num_training_steps
    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, lambda done, left: 1.0, last_epoch)


def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_decay_steps: int,
    min_lr_ratio: float = 0.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Warm up, stays stable, then falls in a straight line to `min_lr_ratio` over the last `num_decay_steps`.

    Source: the warmup-stable-decay schedule of MiniCPM (arXiv 2404.06395, section 4), with the linear decay of
    arXiv 2405.18392 in place of its exponential one.
    """
    num_stable_steps = num_training_steps - num_warmup_steps - num_decay_steps
    if num_decay_steps < 0 or num_stable_steps < 0:
        raise ConfigError(
            f"lr_scheduler.num_decay_steps: {num_decay_steps} and num_warmup_steps: {num_warmup_steps} must fit into "
            f"the {counted(num_training_steps, 'optimizer step')} of this run; lower them or train longer"
        )

    def factor(done: int, left: int) -> float:
        return 1.0 if left >= num_decay_steps else min_lr_ratio + (1.0 - min_lr_ratio) * left / num_decay_steps

    return _with_warmup(optimizer, num_warmup_steps, num_training_steps, factor, last_epoch)


def _with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    factor: Callable[[int, int], float],
    last_epoch: int,
) -> LambdaLR:
    """Let the linear warm-up precede `factor`, a function of the steps done since it and the steps left."""
    if num_warmup_steps < 0:
        raise ConfigError(f"lr_scheduler.num_warmup_steps: {num_warmup_steps} is less than 0; use 0 for no warm-up")
    if num_warmup_steps > num_training_steps:
        get_logger().warning(
            f"lr_scheduler.num_warmup_steps: {num_warmup_steps} is more than the "
            f"{counted(num_training_steps, 'optimizer step')} of this run, whose learning rate therefore never reaches "
            "optimizer.lr"
        )

    def lr_lambda(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        step = min(step, num_training_steps)
        return factor(step - num_warmup_steps, num_training_steps - step) if step > num_warmup_steps else 1.0

    return LambdaLR(optimizer, lr_lambda, last_epoch)
