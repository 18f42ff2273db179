"""The language-modelling loss and the log-probabilities of tokens, without logits for tokens that carry no label.

b batch, s sequence, d embed, n label tokens, v vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHUNK, CHUNK_CPU = 1 << 25, 1 << 23  # logits that exist at a time where chunk_size is not given
SLAB, SLAB_CPU = 1 << 24, 1 << 18  # logits whose softmax is taken at a time: on a CPU as many as stay in its cache


class LinearCrossEntropyLoss(nn.Module):
    """Cross-entropy summed over the label tokens, with the output projection inside it.

    Only the rows of the hidden states that have a label are projected, `chunk_size` rows at a time (None: 8 million
    logits on a CPU, 32 million elsewhere), and where a gradient is needed it is made at once: no logits are kept for
    the backward pass or computed twice. Softmax and sum are in float32. The sum, not the mean: the caller divides by
    the label tokens of the whole optimizer step. The loss can be differentiated once.
    """

    def __init__(self, chunk_size: int | None = None, ignore_index: int = -100) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size {chunk_size} must be at least 1")
        self.chunk_size, self.ignore_index = chunk_size, ignore_index

    def forward(
        self,
        output: nn.Module,
        hidden: Tensor,
        labels: Tensor,
        rows: Tensor | None = None,
        token_losses: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss of `output(hidden [b, s, d])` against `labels [b, s] int64`: float32, 0 without any label.

        `rows` are what `rows_of` finds; on a GPU that makes the host wait, who may know them from labels of its own.
        The loss of each token that has a label is written to `token_losses [b, s] float32`, if that is given.
        """
        rows = self.rows_of(labels) if rows is None else rows
        hidden, labels = hidden.flatten(0, 1)[rows], labels.flatten()[rows]  # [n, d], [n]
        chunk_size, trained = self.chunk_size or _chunk_size(output, hidden), _trained(output)
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)  # [n]
        loss = _SummedCrossEntropy.apply(output, labels, losses, chunk_size, hidden, *trained)
        if token_losses is not None:
            token_losses.view(-1)[rows] = losses
        return loss

    def rows_of(self, labels: Tensor) -> Tensor:
        """Find which of all `b s` labels count: `[n] int64`."""
        return (labels != self.ignore_index).flatten().nonzero().squeeze(1)


def token_log_probs(
    output: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    chunk_size: int | None = None,
    ignore_index: int = -100,
    likeliest: Tensor | None = None,
) -> Tensor:
    """Return the log-probability of each label by `output(hidden [b, s, d])`: `[b, s] float32`, 0 without a label.

    Logits exist for `chunk_size` tokens at a time, as in `LinearCrossEntropyLoss`, and are computed again for the
    gradient, which weighs each token differently. The likeliest token where there is a label is written to `likeliest
    [b, s] int64`, if that is given.
    """
    rows = (labels != ignore_index).flatten().nonzero().squeeze(1)
    states, labels_of = hidden.flatten(0, 1)[rows], labels.flatten()[rows]  # [n, d], [n]
    chunk_size = chunk_size or _chunk_size(output, hidden)
    chosen = None if likeliest is None else torch.empty_like(labels_of)
    log_probs = _TokenLogProbs.apply(output, labels_of, chosen, chunk_size, states, *_trained(output))
    if likeliest is not None:
        likeliest.view(-1)[rows] = chosen
    return hidden.new_zeros(labels.numel(), dtype=torch.float32).index_put((rows,), log_probs).view(labels.shape)


def _chunk_size(output: nn.Module, hidden: Tensor) -> int:
    return max((CHUNK_CPU if hidden.device.type == "cpu" else CHUNK) // output.weight.shape[0], 1)


def _trained(output: nn.Module) -> list[Tensor]:
    return [param for param in output.parameters() if param.requires_grad] if torch.is_grad_enabled() else []


def _chunked(
    output: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    losses: Tensor,
    chunk_size: int,
    *,
    needed: bool = False,
    trained: Sequence[Tensor] = (),
    weights: Tensor | None = None,
    likeliest: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Sum the losses of `output(hidden [n, d])` against `labels [n]`, each times its weight in `weights [n]`, if given.

    The second result has the gradients of `hidden`, where `needed`, and of the parameters `trained` in float32. `losses
    [n] float32` is filled with that of each token, `likeliest [n] int64`, if given, with the likeliest token.
    """
    inputs = [*([hidden] if needed else []), *trained]
    grads = [torch.zeros_like(hidden) if needed else None]
    grads += [torch.zeros_like(param, dtype=torch.float32) for param in trained]
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(labels), chunk_size):
        rows = slice(start, start + chunk_size)
        h = hidden[rows].detach().requires_grad_(needed)
        with torch.set_grad_enabled(bool(inputs)):
            logits = output(h)  # [chunk_size, v]
            if likeliest is not None:
                likeliest[rows] = logits.detach().argmax(-1)
            weight = None if weights is None else weights[rows]
            chunk_loss = _CrossEntropy.apply(logits, labels[rows], losses[rows], weight)
        loss += chunk_loss.detach()
        if inputs:
            found = iter(torch.autograd.grad(chunk_loss, [*([h] if needed else []), *trained]))
            if needed:
                grads[0][rows] = next(found)
            for total, grad in zip(grads[1:], found, strict=True):
                total += grad
    return loss, grads


class _SummedCrossEntropy(torch.autograd.Function):
    """The loss of `output(hidden [n, d])` against `labels [n]`, whose gradients are made in the forward pass.

    `losses [n] float32` is filled with that of each token.
    """

    @staticmethod
    def forward(
        ctx: Any, output: nn.Module, labels: Tensor, losses: Tensor, chunk_size: int, hidden: Tensor, *trained: Tensor
    ) -> Tensor:
        needed = ctx.needs_input_grad[4]
        loss, ctx.grads = _chunked(output, hidden, labels, losses, chunk_size, needed=needed, trained=trained)
        ctx.dtypes = [param.dtype for param in trained]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("this loss has been differentiated already; compute it again")
        (hidden, *trained), ctx.grads = ctx.grads, None
        scaled = [total.mul_(grad).to(dtype) for total, dtype in zip(trained, ctx.dtypes, strict=True)]
        return None, None, None, None, hidden if hidden is None else hidden.mul_(grad), *scaled


class _TokenLogProbs(torch.autograd.Function):
    """The log-probability of each of `labels [n]` by `output(hidden [n, d])`, `[n] float32`."""

    @staticmethod
    def forward(
        ctx: Any,
        output: nn.Module,
        labels: Tensor,
        likeliest: Tensor | None,
        chunk_size: int,
        hidden: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        ctx.output, ctx.chunk_size = output, chunk_size
        ctx.save_for_backward(labels, hidden, *trained)
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        _chunked(output, hidden, labels, losses, chunk_size, likeliest=likeliest)
        return losses.neg_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        labels, hidden, *trained = ctx.saved_tensors
        options = {"needed": ctx.needs_input_grad[4], "trained": trained, "weights": grad.neg()}
        _, grads = _chunked(ctx.output, hidden, labels, torch.empty_like(grad), ctx.chunk_size, **options)
        scaled = [total.to(param.dtype) for total, param in zip(grads[1:], trained, strict=True)]
        return None, None, None, None, grads[0], *scaled


class _CrossEntropy(torch.autograd.Function):
    """The loss of `logits [n, v]` against `labels [n]`; replaces the logits by its gradient, softmax - onehot.

    `losses [n] float32` is filled with that of each token, before it is multiplied by its weight in `weights [n]`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, losses: Tensor, weights: Tensor | None) -> Tensor:
        ctx.grad = logits.detach()
        loss = torch.zeros((), dtype=torch.float32, device=logits.device)
        rows = max((SLAB_CPU if logits.device.type == "cpu" else SLAB) // logits.shape[1], 1)
        columns = [labels, losses, *([] if weights is None else [weights])]
        parts = ctx.grad.split(rows), *(each[:, None].split(rows) for each in columns)
        for slab, label, each, *weight in zip(*parts, strict=True):
            values = slab.float()  # [rows, v]; of a float32 slab, itself
            values -= values.amax(1, keepdim=True)
            chosen = values.gather(1, label)
            total = values.exp_().sum(1, keepdim=True)
            each.copy_(total.log() - chosen)
            loss += (each * weight[0] if weight else each).sum()
            if not ctx.needs_input_grad[0]:  # the logits are spent all the same
                continue
            values.div_(total).scatter_add_(1, label, values.new_full(label.shape, -1.0))
            if weight:
                values *= weight[0]
            slab.copy_(values)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.grad, None, None, None  # of the sum itself: `grad` is 1


CEWithChunkedOutputLoss = LinearCrossEntropyLoss
"""torchtune's older name for a loss that never holds all logits; `LinearCrossEntropyLoss` is it."""
