"""LoRA: low-rank adaptation of a frozen projection (Hu et al., arXiv 2106.09685), and its rank-stabilised scale.

r rank; W [out, in], A [r, in], B [out, r].
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.kernels.fused_lora import LowRank
from torchtune_lite.kernels.nf4.linear import Storage, row_tiles
from torchtune_lite.modules.replaceable import digest
from torchtune_lite.peft.frozen import FrozenNF4Linear, linear
from torchtune_lite.peft.nf4 import storage
from torchtune_lite.peft.projections.adapted import AdaptedLinear
from torchtune_lite.peft.projections.initialisation import starting_factors
from torchtune_lite.utils.sharding import as_lies, spread, whole


class LoRALinear(AdaptedLinear):
    """A frozen projection with a trained update: `y = W x + bias + s · B A dropout(x)`, s = alpha / r (section 4.1).

    With `use_rslora`, s is alpha / √r, at which higher ranks learn as fast as low ones (rsLoRA: Kalajdzievski, arXiv
    2312.03732, section 3).

    A starts as U(-1/√in, 1/√in) and B as zero, so that training starts at the base model (the authors' code; the paper
    says Gaussian). `dropout` 0.0 is off. With `quantize_base`, W is kept in NF4 (QLoRA) and dequantised in each pass;
    `in_dim · out_dim` must then be divisible by 16,384, else ValueError. A and B may be kept in more precision than W;
    the product is in that of x. `fused` False keeps it out of `kernels.fused_lora` and `fused_mlp`.

    With `init_lora_weights`, A and B start as the function of that name in `initialisation` makes them of W, when
    `start_from` is given W; W keeps the rest, `W - s · B A`, but for LoftQ's. `start` has A and B as they were then.
    """

    peft_type = "LORA"
    use_dora = False  # in PEFT's configs
    input_params = ("lora_a.weight",)  # without a row for each output

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_bias: bool = False,
        quantize_base: bool = False,
        use_rslora: bool = False,
        init_lora_weights: str | None = None,
    ) -> None:
        super().__init__((FrozenNF4Linear if quantize_base else nn.Linear)(in_dim, out_dim, use_bias))
        self.rank, self.alpha, self.use_rslora = rank, alpha, use_rslora
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Linear(in_dim, rank, bias=False)
        self.lora_b = nn.Linear(rank, out_dim, bias=False)
        self.fused = True
        self.init_lora_weights, self.start = init_lora_weights, None
        self.init_adapter()

    @classmethod
    def from_linear(
        cls, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, **arguments: Any
    ) -> "LoRALinear":
        """Put an adapter on a projection, plain or NF4, whose weight and bias it takes over and freezes."""
        out_dim, in_dim = base.weight.shape
        with torch.device("meta"):
            adapter = cls(in_dim, out_dim, rank, alpha, dropout, **arguments)
        adapter.weight, adapter.bias = base.requires_grad_(False).weight, base.bias
        adapter.init_adapter()
        return adapter

    @classmethod
    def of_factors(cls, base: nn.Module, a: Tensor, b: Tensor, rank: int | None = None) -> "LoRALinear":
        """Put the update `B A` on a projection; `rank`, where it is given, is reached with zeros, and alpha is it."""
        rank = len(a) if rank is None else rank
        adapter = cls.from_linear(base, rank, rank)
        padding = rank - len(a)
        adapter.lora_a.weight = nn.Parameter(F.pad(a, (0, 0, 0, padding)))
        adapter.lora_b.weight = nn.Parameter(F.pad(b, (0, padding)))
        return adapter

    def as_lora(self, rank: int | None = None) -> "LoRALinear":
        """Return itself, or a LoRA of the same function and of `rank`, its alpha its rank."""
        if rank is None:
            return self
        a, b = self.update_factors()
        return LoRALinear.of_factors(self, self.scaling * a.detach(), b.detach(), rank)

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh adapter parameters on the device of the base weight, in its dtype unless another is given."""
        options = {"dtype": dtype or self.weight.dtype, "device": self.weight.device}
        a, b = (torch.empty(factor.weight.shape, **options) for factor in (self.lora_a, self.lora_b))
        if self.start is not None:
            a.copy_(self.start[0])
            b.copy_(self.start[1])
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            nn.init.zeros_(b)
        for factor, made in ((self.lora_a, a), (self.lora_b, b)):
            factor.weight = nn.Parameter(spread(factor.weight, made))

    @torch.no_grad()
    def start_from(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Take the start of A and B out of W, to be in `dtype` (None: W's), and return what is to be kept of W.

        Where `start` is there, as read from a checkpoint, it is that.
        """
        if self.init_lora_weights is None:
            return weight
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if self.start is None:
            factors = starting_factors(self.init_lora_weights)(exact, self.rank, self.scaling)
            self.start = tuple(factor.to("cpu", dtype or weight.dtype) for factor in factors)
        if not self.keeps_rest:
            return weight
        a, b = (factor.to(exact) for factor in self.start)
        return exact.addmm(b, a, alpha=-self.scaling).to(weight.dtype)

    @property
    def starts_from_base(self) -> bool:
        """Whether A and B start as a function of the base's weight."""
        return self.init_lora_weights is not None

    @property
    def keeps_rest(self) -> bool:
        """Whether W is not the base's, but what the start of A and B has left of it."""
        return self.init_lora_weights not in (None, "loftq")

    @property
    def update_rank(self) -> int:
        """The rank of `update_factors`."""
        return self.rank * (2 if self.keeps_rest else 1)

    @property
    def update_alpha(self) -> float:
        """The alpha that scales `update_factors` as A and B are scaled."""
        if not self.keeps_rest:
            return self.alpha
        return self.alpha * (math.sqrt(2) if self.use_rslora else 2)

    def update_factors(self) -> tuple[Tensor, Tensor]:
        """Return the A and B of the change of the base's own weight: of twice the rank where W keeps the rest of it."""
        a, b = self.lora_a.weight, self.lora_b.weight
        if not self.keeps_rest:
            return a, b
        a, b = whole(a), whole(b)
        start_a, start_b = (factor.to(a) for factor in self.start or (a, b))  # before W is known, the shapes
        return torch.cat([a, start_a]), torch.cat([b, -start_b], dim=1)

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within this module."""
        return ["lora_a.weight", "lora_b.weight"]

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        y = linear(x, self.weight, self.bias)
        return y + self.update(x).to(y.dtype) if self.enabled else y

    def update(self, x: Tensor) -> Tensor:
        """Return `s · B A dropout(x)  [..., out]`."""
        a, b = self.lora_a.weight.to(x.dtype), self.lora_b.weight.to(x.dtype)
        return F.linear(F.linear(self.dropout(x), a) * self.scaling, b)

    def low_rank(self) -> LowRank | None:
        """Return the projection as the fused products take it.

        None where these would compute something else than `forward`: with dropout, in a subclass, or if `forward` or
        `update` was edited since they were written.
        """
        as_written = LoRALinear.forward is _FORWARD and LoRALinear.update is _UPDATE and FUSED_AS_WRITTEN
        if type(self) is not LoRALinear or not as_written or not self.fused or (self.dropout.p and self.training):
            return None
        frozen = LowRank(storage(self.weight), self.out_dim, self.bias)
        if not self.enabled:
            return frozen
        return frozen._replace(a=self.lora_a.weight, b=self.lora_b.weight, scaling=self.scaling)

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `W + s · B A` with their values in float32, before they are rounded."""
        a, b = (self.lora_a.weight, self.lora_b.weight) if base is None else self.update_factors()
        weight = storage(self.weight if base is None else base)
        return merged_tiles(weight, whole(a), as_lies(b, self.weight), self.scaling)


_FORWARD, _UPDATE = LoRALinear.forward, LoRALinear.update
FUSED_FOR = ("763ad2bea377", "471e36e9ff95")
"""The digests of `forward` and `update` that `kernels.fused_lora` and `fused_mlp` were written for."""
FUSED_AS_WRITTEN = (digest(_FORWARD), digest(_UPDATE)) in (FUSED_FOR, (None, None))


def merged_tiles(base: Storage, a: Tensor, b: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the rows of a weight base `[out, in]`, and of `base + scaling · B A` in float32."""
    a = a.float()
    for rows, values in row_tiles(base, len(b)):
        yield rows, torch.addmm(values.float(), b[rows].float(), a, alpha=scaling)
