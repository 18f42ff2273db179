"""The products of several projections with one input, of which some carry LoRA, as one step of the backward pass.

T tokens; r rank, R the sum of the ranks; W [out, in], A [r, in], B [out, r].
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.peft.lora import LoRALinear
from torchtune_lite.peft.nf4_linear import FrozenNF4Linear, autocast_dtype, linear, linear_t


def shared_input(x: Tensor, *projections: nn.Module) -> Sequence[Tensor]:
    """Gives what each of `projections` makes of `x [..., in]`: `[..., out]` each.

    The input is read once for the A of all and kept once, and the parts of its gradient are summed in place. One by
    one, with the same result, if one of them has dropout, DoRA, a bias or a weight that is trained, if none carries
    LoRA, and under autocast, which knows each product alone.
    """
    adapted = [p for p in projections if type(p) is LoRALinear]
    if not adapted or not all(map(_fits, projections)) or autocast_dtype(x.device):
        return [p(x) for p in projections]
    outputs = _Products.apply(projections, x.flatten(0, -2), *factors(x, adapted))
    return [y.view(*x.shape[:-1], -1) for y in outputs]


def fits(projection: nn.Module) -> bool:
    """Tells whether `projection` is plain LoRA without dropout."""
    return type(projection) is LoRALinear and projection.dropout.p == 0


def _fits(projection: nn.Module) -> bool:
    plain = type(projection) is nn.Linear and projection.bias is None and not projection.weight.requires_grad
    return fits(projection) or plain or type(projection) is FrozenNF4Linear


def factors(x: Tensor, adapted: Sequence[LoRALinear]) -> list[Tensor]:
    """Gives A and B of each, in the dtype of x."""
    return [factor.weight.to(x.dtype) for p in adapted for factor in (p.lora_a, p.lora_b)]


def forward(
    x: Tensor, projections: Sequence[nn.Module], factors: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gives `[T, out]` of each projection of `x [T, in]`, and what `backward` needs beside x.

    `factors` are A and B of those that carry LoRA.
    """
    a, bs = torch.cat(factors[::2]), factors[1::2]  # [R, in]
    low = x @ a.t()
    outputs = [linear(x, p.weight) for p in projections]
    adapted = [(p, y) for p, y in zip(projections, outputs, strict=True) if type(p) is LoRALinear]
    for (p, y), b, part in zip(adapted, bs, low.split([b.shape[1] for b in bs], dim=1), strict=True):
        y.addmm_(part.mul_(p.scaling), b.t())
    return outputs, [low, a, *bs]


def backward(
    grads: Sequence[Tensor], x: Tensor, projections: Sequence[nn.Module], saved: Sequence[Tensor], needs_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gives the gradient of x, if wanted, and those of the factors; `grads` are those of the outputs."""
    low, a, *bs = saved
    ranks = [b.shape[1] for b in bs]
    low_grad = torch.empty_like(low)
    adapted = [(p, grad) for p, grad in zip(projections, grads, strict=True) if type(p) is LoRALinear]
    b_grads = []
    for (p, grad), b, part, part_grad in zip(adapted, bs, low.split(ranks, 1), low_grad.split(ranks, 1), strict=True):
        part_grad.copy_(grad @ b).mul_(p.scaling)
        b_grads.append(grad.t() @ part)
    a_grads = (low_grad.t() @ x).split(ranks)
    x_grad = None
    if needs_x:
        for p, grad in zip(projections, grads, strict=True):
            x_grad = linear_t(grad, p.weight, add_to=x_grad)
        x_grad.addmm_(low_grad, a)
    return x_grad, [grad for pair in zip(a_grads, b_grads, strict=True) for grad in pair]


class _Products(torch.autograd.Function):
    # x among `tensors`: where no gradient is needed, torch.compile takes 2 factors after two arguments for a call
    # without ctx (AutogradFunctionVariable.call_function counts them)
    @staticmethod
    def forward(ctx: Any, projections: Sequence[nn.Module], *tensors: Tensor) -> tuple[Tensor, ...]:
        x, *factors = tensors
        outputs, saved = forward(x, projections, factors)
        ctx.projections = projections
        ctx.save_for_backward(x, *saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        x_grad, factor_grads = backward(grads, x, ctx.projections, saved, ctx.needs_input_grad[1])
        return None, x_grad, *factor_grads
