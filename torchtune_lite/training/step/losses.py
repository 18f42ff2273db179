"""The loss of a micro-batch, and what share of it each of several data sets has.

b batch, s sequence, d embed.
"""

import inspect
from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor, nn

from torchtune_lite.data import Batch, num_label_tokens
from torchtune_lite.training.run.contracts import checked_loss
from torchtune_lite.utils import to_device

Share = tuple[int, Tensor, int]
"""The number of a data set, the sum of the loss over its label tokens in a batch, detached, and how many they are."""


def summed_loss(
    loss_fn: Callable[..., Tensor], output: nn.Module, hidden: Tensor, labels: Tensor, batch: Batch
) -> tuple[Tensor, list[Share]]:
    """Sum the loss of `hidden [b, s, d]` over the `labels [b, s]`, which are those of the batch on the device.

    Of a batch of several data sets, in training, the second result is the share of each; else it is empty. A loss that
    takes `token_losses`, as `modules.loss.LinearCrossEntropyLoss` does, is called once; another is called for each data
    set, and what it keeps for the backward pass, a gradient of the output projection perhaps, is then there as often.
    """
    ours = batch["labels"]  # in host memory
    if "sources" not in batch or not torch.is_grad_enabled():
        return _called(loss_fn, output, hidden, labels, ours), []
    places = list(parts(batch))
    if _takes(loss_fn, "token_losses"):
        token_losses = torch.zeros(labels.shape, device=hidden.device)
        loss = _called(loss_fn, output, hidden, labels, ours, token_losses=token_losses)
        losses = [token_losses[part].sum() for _, part in places]
    else:
        losses = [_called(loss_fn, output, hidden[part], labels[part], ours[part]) for _, part in places]
        loss = sum(losses)
    counts = [num_label_tokens([{"labels": ours[part]}]) for _, part in places]
    sources = [source for source, _ in places]
    return loss, list(zip(sources, [each.detach() for each in losses], counts, strict=True))


def _called(
    loss_fn: Callable[..., Tensor], output: nn.Module, hidden: Tensor, labels: Tensor, ours: Tensor, **more: Tensor
) -> Tensor:
    """Call a loss on `labels`, which are `ours` in host memory, and check what it returns."""
    loss = loss_fn(output, hidden, labels, **known_rows(loss_fn, ours, labels.device), **more)
    return checked_loss(loss, loss_fn)


def known_rows(loss_fn: Callable[..., Tensor], labels: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Give the argument `rows` for a loss that takes it: of `labels` in host memory, for a loss on `device`."""
    if not hasattr(loss_fn, "rows_of") or not _takes(loss_fn, "rows"):
        return {}
    return {"rows": to_device(loss_fn.rows_of(labels), device)}


def _takes(loss_fn: Callable[..., Tensor], name: str) -> bool:
    return name in inspect.signature(getattr(loss_fn, "forward", loss_fn)).parameters


def parts(batch: Batch) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Yield each data set of a batch and where its samples lie in tensors `[b, s, …]`."""
    rows = batch.get("seq_lens")  # samples of one row, or rows
    start = 0
    for source, each in groupby(range(len(batch["sources"])), key=batch["sources"].__getitem__):
        stop = start + sum(rows[i] if rows else 1 for i in each)
        yield source, (slice(None), slice(start, stop)) if rows else (slice(start, stop),)
        start = stop
