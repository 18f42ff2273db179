"""A validation, and what its batches add up to."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.data import AnyBatches, Batch, num_label_tokens
from torchtune_lite.training.run.data import RunData
from torchtune_lite.utils.world import World

Sums = Sequence[tuple[float, int]]
"""Of each batch, the sum of the loss and the label tokens."""


def measure(
    model: nn.Module,
    data: RunData,
    loss: Callable[[Batch], Tensor],
    autocast: AbstractContextManager,
    world: World,
    *,
    ask: bool,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the losses of `dataset_val` and, with `ask`, the scores of `dataset_eval` and its answers."""
    losses, scores, answers = validate(model, data.val, loss, world) if data.val else {}, {}, []
    if ask and data.questions:
        with autocast:
            scores, answers = data.questions.ask(model)
    world.settle(model)
    return losses | scores, answers


@torch.no_grad()
def validate(
    model: nn.Module, sets: Mapping[str, AnyBatches], loss: Callable[[Batch], Tensor], world: World
) -> dict[str, float]:
    """Return the `mean_losses` of data sets, of which each process has its share of the micro-batches.

    `loss` sums that of a micro-batch. `model` is in training afterwards.
    """
    model.eval()
    sums = {
        name: [(loss(batch).item(), num_label_tokens([batch])) for batch in batches.epoch(0)]
        for name, batches in sets.items()
    }
    model.train()
    return mean_losses({name: [pair for each in world.gather(pairs) for pair in each] for name, pairs in sums.items()})


def mean_losses(sums: Mapping[str, Sums]) -> dict[str, float]:
    """Return `val_loss`, the mean over the label tokens of all data sets, and `val_loss/NAME`, that over each one's.

    That of a data set whose name is empty is left out, the only one. Without a label token a mean is nan.
    """
    losses = {"val_loss": _mean([pair for each in sums.values() for pair in each])}
    return losses | {f"val_loss/{name}": _mean(each) for name, each in sums.items() if name}


def _mean(sums: Sums) -> float:
    num_tokens = sum(count for _, count in sums)
    return sum(loss for loss, _ in sums) / num_tokens if num_tokens else math.nan
