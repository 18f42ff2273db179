"""The products of several projections with one input, of which some carry LoRA, as one step of the backward pass.

T tokens; r rank, R the sum of the ranks; W [out, in], A [r, in], B [out, r].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchtune_lite.kernels.nf4.linear import Storage, autocast_dtype, linear, linear_t


class LowRank(NamedTuple):
    """A frozen projection, `y = W x + bias`, perhaps with a trained update: `+ scaling · B A x`."""

    weight: Storage
    out_dim: int
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scaling: float = 1.0

    @property
    def is_adapted(self) -> bool:
        """True if there is an update."""
        return self.a is not None


def low_rank(projection: nn.Module) -> LowRank | None:
    """Return a projection as a `LowRank`, or None where it computes anything else.

    A projection of another class says so itself, in a method `low_rank`. One with a hook, or with a `forward` of its
    own, is left alone: it has to run as it stands.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if "forward" in projection.__dict__ or any(getattr(projection, name) for name in hooks):
        return None
    if type(projection) is nn.Linear and not any(param.requires_grad for param in projection.parameters()):
        return LowRank([projection.weight], len(projection.weight), projection.bias)
    return projection.low_rank() if hasattr(projection, "low_rank") else None


def project(x: Tensor, *linears: nn.Module) -> Any:
    """Return what each projection makes of `x [..., in]`: `[..., out]` each.

    The input is read once for the A of all and kept once, and the parts of its gradient are summed in place. Not for
    projections of which one is not a `LowRank` or none has an update, nor under autocast, which knows each product
    alone.
    """
    projections = [low_rank(each) for each in linears]
    if any(p is None for p in projections) or not any(p.is_adapted for p in projections) or autocast_dtype(x.device):
        return NotImplemented
    outputs = _Products.apply(projections, x.flatten(0, -2), *factors(x, projections))
    return [y.view(*x.shape[:-1], -1) for y in outputs]


def factors(x: Tensor, projections: Sequence[LowRank]) -> list[Tensor]:
    """Return A and B of each projection that has them, in the dtype of x."""
    return [factor.to(x.dtype) for p in projections if p.is_adapted for factor in (p.a, p.b)]


def forward(x: Tensor, projections: Sequence[LowRank], factors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the output `[T, out]` of each projection of `x [T, in]`, and what `backward` needs beside x."""
    a, bs = torch.cat(factors[::2]), factors[1::2]  # [R, in]
    low = x @ a.t()
    outputs = [linear(x, p.weight, p.out_dim) for p in projections]
    adapted = [(p, y) for p, y in zip(projections, outputs, strict=True) if p.is_adapted]
    for (p, y), b, part in zip(adapted, bs, low.split([b.shape[1] for b in bs], dim=1), strict=True):
        y.addmm_(part.mul_(p.scaling), b.t())
    for p, y in zip(projections, outputs, strict=True):
        if p.bias is not None:
            y.add_(p.bias)
    return outputs, [low, a, *bs]


def backward(
    grads: Sequence[Tensor], x: Tensor, projections: Sequence[LowRank], saved: Sequence[Tensor], needs_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradient of x, if wanted, and those of the factors; `grads` are those of the outputs."""
    low, a, *bs = saved
    ranks = [b.shape[1] for b in bs]
    low_grad = torch.empty_like(low)
    adapted = [(p, grad) for p, grad in zip(projections, grads, strict=True) if p.is_adapted]
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
    # x is among `tensors`: where no gradient is needed, torch.compile takes two factors after two arguments for a call
    # without ctx (AutogradFunctionVariable.call_function counts them)
    @staticmethod
    def forward(ctx: Any, projections: Sequence[LowRank], *tensors: Tensor) -> tuple[Tensor, ...]:
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
