"""The language-modelling loss, without logits for tokens that carry no label.

b batch, s sequence, d embed, n label tokens, v vocabulary.
"""

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
        """Sums the loss of `output(hidden [b, s, d])` against `labels [b, s] int64`: float32, 0 without any label.

        `rows` are what `rows_of` finds; on a GPU that makes the host wait, who may know them from labels of its own.
        The loss of each token that has a label is written to `token_losses [b, s] float32`, if that is given.
        """
        rows = self.rows_of(labels) if rows is None else rows
        hidden, labels = hidden.flatten(0, 1)[rows], labels.flatten()[rows]  # [n, d], [n]
        trained = [param for param in output.parameters() if param.requires_grad] if torch.is_grad_enabled() else []
        logits = CHUNK_CPU if hidden.device.type == "cpu" else CHUNK
        chunk_size = self.chunk_size or max(logits // output.weight.shape[0], 1)
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)  # [n]
        loss = _SummedCrossEntropy.apply(output, labels, losses, chunk_size, hidden, *trained)
        if token_losses is not None:
            token_losses.view(-1)[rows] = losses
        return loss

    def rows_of(self, labels: Tensor) -> Tensor:
        """Finds which of all `b s` labels count: `[n] int64`."""
        return (labels != self.ignore_index).flatten().nonzero().squeeze(1)


class _SummedCrossEntropy(torch.autograd.Function):
    """The loss of `output(hidden [n, d])` against `labels [n]`, whose gradients are made in the forward pass.

    `losses [n] float32` is filled with that of each token.
    """

    @staticmethod
    def forward(
        ctx: Any, output: nn.Module, labels: Tensor, losses: Tensor, chunk_size: int, hidden: Tensor, *trained: Tensor
    ) -> Tensor:
        needed = ctx.needs_input_grad[4]
        inputs = [*([hidden] if needed else []), *trained]
        ctx.grads = [torch.zeros_like(hidden) if needed else None]
        ctx.grads += [torch.zeros_like(param, dtype=torch.float32) for param in trained]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(labels), chunk_size):
            rows = slice(start, start + chunk_size)
            h = hidden[rows].detach().requires_grad_(needed)
            with torch.set_grad_enabled(bool(inputs)):
                logits = output(h)  # [chunk_size, v]
                chunk_loss = _CrossEntropy.apply(logits, labels[rows], losses[rows])
            loss += chunk_loss.detach()
            if inputs:
                grads = iter(torch.autograd.grad(chunk_loss, [*([h] if needed else []), *trained]))
                if needed:
                    ctx.grads[0][rows] = next(grads)
                for total, grad in zip(ctx.grads[1:], grads, strict=True):
                    total += grad
        ctx.dtypes = [param.dtype for param in trained]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("this loss has been differentiated already; compute it anew")
        (hidden, *trained), ctx.grads = ctx.grads, None
        scaled = [total.mul_(grad).to(dtype) for total, dtype in zip(trained, ctx.dtypes, strict=True)]
        return None, None, None, None, hidden if hidden is None else hidden.mul_(grad), *scaled


class _CrossEntropy(torch.autograd.Function):
    """The loss of `logits [n, v]` against `labels [n]`; replaces the logits by its gradient, softmax - onehot.

    `losses [n] float32` is filled with that of each token.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        ctx.grad = logits.detach()
        loss = torch.zeros((), dtype=torch.float32, device=logits.device)
        rows = max((SLAB_CPU if logits.device.type == "cpu" else SLAB) // logits.shape[1], 1)
        parts = ctx.grad.split(rows), labels[:, None].split(rows), losses[:, None].split(rows)
        for slab, label, each in zip(*parts, strict=True):
            values = slab.float()  # [rows, v]; of a float32 slab, itself
            values -= values.amax(1, keepdim=True)
            chosen = values.gather(1, label)
            total = values.exp_().sum(1, keepdim=True)
            loss += each.copy_(total.log() - chosen).sum()
            values.div_(total).scatter_add_(1, label, values.new_full(label.shape, -1.0))
            slab.copy_(values)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.grad, None, None  # of the sum itself: `grad` is 1


CEWithChunkedOutputLoss = LinearCrossEntropyLoss
"""torchtune's older name for a loss that never holds all logits; `LinearCrossEntropyLoss` is it."""
