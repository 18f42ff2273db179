"""The feed-forward of a layer whose three projections carry LoRA, as two steps of the backward pass instead of twelve.

T tokens, d embed, f intermediate, r rank; W [out, in], A [r, in], B [out, r].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        return all(type(w) is LoRALinear and w.dropout.p == 0 for w in (mlp.w1, mlp.w2, mlp.w3))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., d]` to `[..., d]`; under autocast, which knows each product alone, in twelve steps."""
        if torch.is_autocast_enabled(x.device.type):
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        factors = [f.weight.to(x.dtype) for w in (self.w1, self.w3, self.w2) for f in (w.lora_a, w.lora_b)]
        hidden, update = _Hidden.apply(x.flatten(0, -2), self.w1, self.w3, self.w2.scaling, *factors)
        return _AddProduct.apply(update, hidden, self.w2.weight).view(x.shape)


class _Hidden(torch.autograd.Function):
    """`h = silu(w1 x) · w3 x  [T, f]` of `x [T, d]`, and w2's update `s B A h  [T, d]`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: LoRALinear, w3: LoRALinear, scaling: float, *factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        a1, b1, a3, b3, a2, b2 = factors
        a13 = torch.cat([a1, a3])  # [2r, d]
        low13 = x @ a13.t()
        low13[:, : w1.rank] *= w1.scaling
        low13[:, w1.rank :] *= w3.scaling
        gate = linear(x, w1.weight).addmm_(low13[:, : w1.rank], b1.t())  # [T, f]
        up = linear(x, w3.weight).addmm_(low13[:, w1.rank :], b3.t())
        hidden = F.silu(gate).mul_(up)
        low2 = (hidden @ a2.t()).mul_(scaling)  # [T, r]
        ctx.w1, ctx.w3, ctx.scaling = w1, w3, scaling
        ctx.save_for_backward(x, gate, up, low13, low2, a13, b1, b3, a2, b2)
        return hidden, low2 @ b2.t()

    @staticmethod
    def backward(ctx: Any, hidden_grad: Tensor, update_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, low13, low2, a13, b1, b3, a2, b2 = ctx.saved_tensors
        w1, w3 = ctx.w1, ctx.w3
        low = (update_grad @ b2).mul_(ctx.scaling)
        b2_grad = update_grad.t() @ low2
        hidden_grad.addmm_(low, a2)  # ours alone: `_AddProduct` has just made it
        silu = F.silu(gate)
        a2_grad = low.t() @ (silu * up)
        up_grad = silu.mul_(hidden_grad)
        gate_grad = torch.ops.aten.silu_backward(hidden_grad.mul_(up), gate)
        low = torch.empty_like(low13)
        low[:, : w1.rank] = (gate_grad @ b1).mul_(w1.scaling)
        low[:, w1.rank :] = (up_grad @ b3).mul_(w3.scaling)
        b1_grad, b3_grad = gate_grad.t() @ low13[:, : w1.rank], up_grad.t() @ low13[:, w1.rank :]
        a1_grad, a3_grad = (low.t() @ x).split([w1.rank, w3.rank])
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = linear_t(gate_grad, w1.weight)
            x_grad = linear_t(up_grad, w3.weight, add_to=x_grad).addmm_(low, a13)
        return x_grad, None, None, None, a1_grad, b1_grad, a3_grad, b3_grad, a2_grad, b2_grad


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
