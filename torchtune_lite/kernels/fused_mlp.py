"""The feed-forward of a layer whose three projections carry LoRA, as two steps of the backward pass instead of twelve.

T tokens, d embed, f intermediate, r rank; W [out, in], A [r, in], B [out, r].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.kernels import fused_lora
from torchtune_lite.kernels.fused_lora import LowRank, low_rank
from torchtune_lite.kernels.nf4.linear import autocast_dtype, linear, linear_t


class Activation(NamedTuple):
    """An activation, and its backward pass, which writes the gradient to where `grad_input` says."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[..., Tensor]


ACTIVATIONS = {
    "silu": Activation(F.silu, torch.ops.aten.silu_backward.grad_input),
    "gelu_tanh": Activation(
        partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh")
    ),
}


def gated_mlp(x: Tensor, w1: nn.Module, w2: nn.Module, w3: nn.Module, activation: str, tile: int | None) -> Any:
    """Compute `w2(activation(w1 x) · w3 x)` of `x [..., d]`.

    The input is read once for the A of w1 and w3; the backward pass keeps the input and what w1 and w3 give, `d + 2f`
    values a token instead of `d + 4f`, and overwrites its own gradients. Recomputed in activation checkpointing, w2's
    product is left out, since nothing after it is needed.

    With `tile`, so many tokens are computed at a time and the backward pass keeps only the input, of which it computes
    w1 and w3 once more, tile by tile: beside activation checkpointing, which would do so anyway, at no cost. Gradients
    of the factors are summed over tiles in float32.

    Only where all projections are adapted and none has a bias, and not under autocast, which knows each product alone.
    """
    projections = [low_rank(each) for each in (w1, w3, w2)]
    if not all(p is not None and p.is_adapted and p.bias is None for p in projections):
        return NotImplemented
    if autocast_dtype(x.device):
        return NotImplemented
    mlp = GatedMLP(*projections, ACTIVATIONS[activation], tile)
    factors, rows = fused_lora.factors(x, projections), x.flatten(0, -2)
    if tile:
        return _InTiles.apply(_KeepInput.apply(rows, mlp, *factors), mlp, *factors).view(x.shape)
    hidden, update = _Hidden.apply(rows, mlp, *factors)
    return _AddProduct.apply(update, hidden, mlp.w2).view(x.shape)


class GatedMLP(NamedTuple):
    """The frozen parts of the feed-forward, and its two halves: up to w2's update, and back."""

    w1: LowRank
    w3: LowRank
    w2: LowRank
    activation: Activation
    tile: int | None

    def hidden(self, x: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return `h = act(w1 x) · w3 x  [T, f]` of `x [T, d]`, w2's update `s B A h  [T, d]`, and what is to be kept.

        `factors` are A and B of w1, w3 and w2.
        """
        *factors, a2, b2 = factors
        (gate, up), saved = fused_lora.forward(x, (self.w1, self.w3), factors)  # [T, f]
        hidden = self.activation.forward(gate).mul_(up)
        low = (hidden @ a2.t()).mul_(self.w2.scaling)  # [T, r]
        return hidden, low @ b2.t(), [x, gate, up, low, a2, b2, *saved]

    def hidden_backward(
        self, hidden_grad: Tensor, update_grad: Tensor, kept: Sequence[Tensor], needs_x: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of x, if wanted, and of the factors; overwrites `hidden_grad`."""
        x, gate, up, low, a2, b2, *saved = kept
        low_grad = (update_grad @ b2).mul_(self.w2.scaling)
        b2_grad = update_grad.t() @ low
        hidden_grad.addmm_(low_grad, a2)
        activated = self.activation.forward(gate)
        a2_grad = low_grad.t() @ (activated * up)
        up_grad = activated.mul_(hidden_grad)
        gate_grad = hidden_grad.mul_(up)
        self.activation.backward(gate_grad, gate, grad_input=gate_grad)
        x_grad, factor_grads = fused_lora.backward((gate_grad, up_grad), x, (self.w1, self.w3), saved, needs_x)
        return x_grad, [*factor_grads, a2_grad, b2_grad]


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: GatedMLP, *factors: Tensor) -> tuple[Tensor, Tensor]:
        hidden, update, kept = mlp.hidden(x, factors)
        ctx.mlp = mlp
        ctx.save_for_backward(*kept)
        return hidden, update

    @staticmethod
    def backward(ctx: Any, hidden_grad: Tensor, update_grad: Tensor) -> tuple[Tensor | None, ...]:
        # hidden_grad is ours alone: `_AddProduct` has just made it
        x_grad, grads = ctx.mlp.hidden_backward(hidden_grad, update_grad, ctx.saved_tensors, ctx.needs_input_grad[0])
        return x_grad, None, *grads


class _AddProduct(torch.autograd.Function):
    """`update + W x` of a frozen projection.

    The weight is not saved for the backward pass but kept: checkpointing recomputes a layer up to the last tensor that
    is saved, which thus comes before this product.
    """

    @staticmethod
    def forward(ctx: Any, update: Tensor, x: Tensor, w2: LowRank) -> Tensor:
        ctx.w2 = w2
        return linear(x, w2.weight, w2.out_dim).add_(update)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, linear_t(grad, ctx.w2.weight), None


class _KeepInput(torch.autograd.Function):
    """The input itself; what comes back as its gradient is that of the output of `_InTiles`.

    Apart from `_InTiles`, so that checkpointing, which recomputes up to the last tensor that is saved, leaves it out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: GatedMLP, *factors: Tensor) -> Tensor:
        ctx.mlp = mlp
        ctx.save_for_backward(x, *factors)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        x_grad = torch.empty_like(x) if needs_x else None
        totals = [torch.zeros_like(factor, dtype=torch.float32) for factor in factors]
        for start in range(0, len(x), ctx.mlp.tile):
            rows = slice(start, start + ctx.mlp.tile)
            _, _, kept = ctx.mlp.hidden(x[rows], factors)
            hidden_grad = linear_t(grad[rows], ctx.mlp.w2.weight)
            tile_grad, grads = ctx.mlp.hidden_backward(hidden_grad, grad[rows], kept, needs_x)
            if needs_x:
                x_grad[rows] = tile_grad
            for total, each in zip(totals, grads, strict=True):
                total += each
        return x_grad, None, *(total.to(factor.dtype) for total, factor in zip(totals, factors, strict=True))


class _InTiles(torch.autograd.Function):
    """The feed-forward of `x [T, d]`, whose gradient `_KeepInput` computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: GatedMLP, *factors: Tensor) -> Tensor:
        ctx.num_factors = len(factors)
        y = torch.empty_like(x)
        for start in range(0, len(x), mlp.tile):
            rows = slice(start, start + mlp.tile)
            hidden, update, _ = mlp.hidden(x[rows], factors)
            torch.add(linear(hidden, mlp.w2.weight, mlp.w2.out_dim), update, out=y[rows])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *(None,) * ctx.num_factors
