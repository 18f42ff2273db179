"""The feed-forward of a layer whose three projections carry LoRA, as two steps of the backward pass instead of twelve.

T tokens, d embed, f intermediate, r rank; W [out, in], A [r, in], B [out, r].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft import products
from torchtune_lite.peft.lora import LoRALinear
from torchtune_lite.peft.nf4_linear import linear, linear_t


class LoRAFeedForward(nn.Module):
    """SwiGLU, `w2(silu(w1 x) · w3 x)`, of the projections of a `FeedForward`, which it takes over under their names.

    The input is read once for the A of w1 and w3; the backward pass keeps the input and what w1 and w3 give, `d + 2f`
    values a token instead of `d + 4f`, and overwrites its own gradients. Recomputed in activation checkpointing, w2's
    product is left out, since nothing after it is needed.
    """

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = mlp.w1, mlp.w2, mlp.w3

    @staticmethod
    def fits(mlp: nn.Module) -> bool:
        """Tells whether the projections of `mlp` can be taken over: all have plain LoRA without dropout."""
        return all(map(products.fits, (mlp.w1, mlp.w2, mlp.w3)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., d]` to `[..., d]`; under autocast, which knows each product alone, in twelve steps."""
        if torch.is_autocast_enabled(x.device.type):
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        factors = products.factors(x, (self.w1, self.w3, self.w2))
        hidden, update = _Hidden.apply(x.flatten(0, -2), (self.w1, self.w3), self.w2.scaling, *factors)
        return _AddProduct.apply(update, hidden, self.w2.weight).view(x.shape)


class _Hidden(torch.autograd.Function):
    """`h = silu(w1 x) · w3 x  [T, f]` of `x [T, d]`, and w2's update `s B A h  [T, d]`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1_w3: tuple[LoRALinear, LoRALinear], scaling: float, *factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        *factors, a2, b2 = factors
        (gate, up), saved = products.forward(x, w1_w3, factors)  # [T, f]
        hidden = F.silu(gate).mul_(up)
        low = (hidden @ a2.t()).mul_(scaling)  # [T, r]
        ctx.w1_w3, ctx.scaling = w1_w3, scaling
        ctx.save_for_backward(x, gate, up, low, a2, b2, *saved)
        return hidden, low @ b2.t()

    @staticmethod
    def backward(ctx: Any, hidden_grad: Tensor, update_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, low, a2, b2, *saved = ctx.saved_tensors
        low_grad = (update_grad @ b2).mul_(ctx.scaling)
        b2_grad = update_grad.t() @ low
        hidden_grad.addmm_(low_grad, a2)  # ours alone: `_AddProduct` has just made it
        silu = F.silu(gate)
        a2_grad = low_grad.t() @ (silu * up)
        up_grad = silu.mul_(hidden_grad)
        gate_grad = hidden_grad.mul_(up)
        torch.ops.aten.silu_backward.grad_input(gate_grad, gate, grad_input=gate_grad)
        x_grad, factor_grads = products.backward((gate_grad, up_grad), x, ctx.w1_w3, saved, ctx.needs_input_grad[0])
        return x_grad, None, None, *factor_grads, a2_grad, b2_grad


class _AddProduct(torch.autograd.Function):
    """`update + W x` of a frozen weight.

    The weight is not saved for the backward pass but kept: checkpointing recomputes a layer up to the last tensor that
    is saved, which thus comes before this product.
    """

    @staticmethod
    def forward(ctx: Any, update: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return linear(x, weight).add_(update)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, linear_t(grad, ctx.weight), None
