"""AdamW in float32 for weights in bfloat16, a bucket of elements at a time.

Decoupled weight decay (arXiv 1711.05101), by torch's fused kernel: for float32 weights, and in float32 for all others,
the result is that of `torch.optim.AdamW(fused=True)` to the bit.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from torchtune_lite.errors import ConfigError
from torchtune_lite.optim.rounding import join, round_at_random, split
from torchtune_lite.utils import to_device
from torchtune_lite.utils.sharding import local

BUCKET, BUCKET_CPU = 1 << 24, 1 << 18
"""Elements that are computed, or moved, at a time: 64 MiB in float32; of weights on a CPU what stays in its cache."""


class Piece(NamedTuple):
    """A run of elements of one parameter, with their gradients and state: flat views of the whole tensors."""

    weight: Tensor
    grad: Tensor
    step: Tensor
    state: dict[str, Tensor]


class BucketedAdamW(torch.optim.AdamW):
    """AdamW whose float32 copies of weights, gradients and state exist for one bucket only.

    `new_state` says what is kept between steps; `fetch` starts to bring a bucket to where it is computed, while the
    bucket before is in `finish`, which computes it and puts it back.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)  # checks them
        params = [param for group in self.param_groups for param in group["params"]]
        self.bucket = BUCKET_CPU if params[0].device.type == "cpu" else BUCKET
        dtypes = {param.dtype for param in params}
        if wrong := dtypes - {torch.float32, torch.bfloat16}:
            raise ConfigError(
                f"optimizer: {type(self).__name__} trains float32 and bfloat16, not {', '.join(map(str, wrong))}; "
                "set dtype: bf16, or mixed_precision: True"
            )

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Make the state of a parameter before its first step: `step`, on the CPU, and tensors of its shape.

        Of a sharded one, that is of its rows here.
        """
        return {"step": torch.tensor(0.0), "exp_avg": _zeros(param), "exp_avg_sq": _zeros(param)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            fetched = None
            for bucket in self._buckets(params):
                following = self.fetch(bucket)
                if fetched is not None:
                    self.finish(group, fetched)
                fetched = following
            if fetched is not None:
                self.finish(group, fetched)
            for param in params:
                self.state[param]["step"] += 1
        return loss

    def fetch(self, bucket: list[Piece]) -> Any:
        """Start to bring a bucket to where it is computed; what it returns is given to `finish`."""
        return bucket

    def finish(self, group: dict[str, Any], fetched: Any) -> None:
        """Compute a fetched bucket and puts it back."""
        self.update(group, fetched)

    def update(self, group: dict[str, Any], bucket: list[Piece]) -> None:
        """Compute a bucket that lies on one device."""
        weights, *moments = zip(*(self.load(piece) for piece in bucket), strict=True)
        adamw(
            list(weights),
            [piece.grad.float() for piece in bucket],
            *map(list, moments),
            [],
            list(to_device(torch.stack([piece.step for piece in bucket]), weights[0].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for piece, *values in zip(bucket, weights, *moments, strict=True):
            self.keep(piece, *values)

    def load(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight, `exp_avg` and `exp_avg_sq` in float32, themselves or copies."""
        return piece.weight, piece.state["exp_avg"], piece.state["exp_avg_sq"]

    def keep(self, piece: Piece, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Write back what `load` gave a copy of."""

    def _buckets(self, params: list[Tensor]) -> Iterator[list[Piece]]:
        bucket, size = [], 0
        for param in params:
            if not self.state[param]:
                self.state[param].update(self.new_state(local(param)))
            weight, grad = local(param.detach()).view(-1), local(param.grad).reshape(-1)
            flat = {key: value.view(-1) for key, value in self.state[param].items() if key != "step"}
            for start in range(0, len(weight), self.bucket):
                span = slice(start, min(start + self.bucket, len(weight)))
                if bucket and size + span.stop - start > self.bucket:
                    yield bucket
                    bucket, size = [], 0
                size += span.stop - start
                state = {key: value[span] for key, value in flat.items()}
                bucket.append(Piece(weight[span], grad[span], self.state[param]["step"], state))
        if bucket:
            yield bucket


class MasterAdamW(BucketedAdamW):
    """AdamW with float32 master weights, whose upper halves are the bfloat16 weights of the model.

    The lower halves are kept beside the float32 moments: 14 bytes a bfloat16 weight with its gradient, and no update is
    too small to count. float32 weights are their own masters.
    """

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Add `remainder`, int16, to the moments of a bfloat16 parameter."""
        rest = {"remainder": _zeros(param, torch.int16)} if param.dtype == torch.bfloat16 else {}
        return super().new_state(param) | rest

    def load(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """Join a master weight."""
        weight, *moments = super().load(piece)
        return (join(weight, piece.state["remainder"]) if "remainder" in piece.state else weight), *moments

    def keep(self, piece: Piece, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Split a master weight."""
        if "remainder" in piece.state:
            for kept, half in zip((piece.weight, piece.state["remainder"]), split(weight), strict=True):
                kept.copy_(half)


class StochasticAdamW(BucketedAdamW):
    """AdamW with weights and moments in bfloat16, rounded up or down at random so that the mean is right.

    8 bytes a weight with its gradient, as torch's AdamW in bfloat16, which loses updates smaller than half the last
    digit of a weight. float32 weights, and their moments, are not rounded.
    """

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Make moments in the dtype of the parameter."""
        state = super().new_state(param)
        return {key: value if key == "step" else value.to(param.dtype) for key, value in state.items()}

    def load(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """Cast all three."""
        return tuple(values.float() for values in super().load(piece))

    def keep(self, piece: Piece, *values: Tensor) -> None:
        """Round all three."""
        for kept, each in zip(super().load(piece), values, strict=True):
            if kept.dtype == torch.bfloat16:
                kept.copy_(round_at_random(each))


def _zeros(param: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros_like(param, dtype=dtype, requires_grad=False, memory_format=torch.contiguous_format)
