"""VeRA: vectors around random matrices that all projections share (Kopiczko et al., arXiv 2310.11454).

r rank; W [out, in], A [r, largest in], B [largest out, r], b [out], d [r].
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft.frozen import linear
from torchtune_lite.peft.nf4 import storage
from torchtune_lite.peft.peft_file import HARMLESS, SWITCH, WHOLE, PeftFile, Projection, dropout_of
from torchtune_lite.peft.projections.adapted import AdaptedLinear
from torchtune_lite.peft.projections.lora import LoRALinear, merged_tiles

SHARED_A, SHARED_B = "base_model.vera_A", "base_model.vera_B"


class RandomFactors:
    """A and B of all projections of a model, each of which uses their first columns and rows.

    Drawn as PEFT draws them, to the bit: A, then B, in float32 from one generator of the CPU of seed `key`, uniform in
    ±√(6 / inputs).
    """

    def __init__(self, rank: int, key: int) -> None:
        self.rank, self.key, self.in_dim, self.out_dim = rank, key, 0, 0
        self._drawn: tuple[Tensor, Tensor] | None = None

    def fit(self, in_dim: int, out_dim: int) -> None:
        """Make room for one more projection."""
        self.in_dim, self.out_dim = max(self.in_dim, in_dim), max(self.out_dim, out_dim)
        self._drawn = None

    def like(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B on the device of a parameter, in its dtype; they are drawn once."""
        if parameter.is_meta:
            return parameter.new_empty(self.rank, self.in_dim), parameter.new_empty(self.out_dim, self.rank)
        if self._drawn is None:
            generator = torch.Generator("cpu").manual_seed(self.key)
            self._drawn = tuple(
                torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
                for shape, bound in (
                    ((self.rank, self.in_dim), (6 / self.in_dim) ** 0.5),
                    ((self.out_dim, self.rank), (6 / self.rank) ** 0.5),
                )
            )
        if self._drawn[0].dtype != parameter.dtype or self._drawn[0].device != parameter.device:
            self._drawn = tuple(each.to(parameter.device, parameter.dtype) for each in self._drawn)
        return self._drawn


class VeRALinear(AdaptedLinear):
    """A frozen projection with a trained update: `y = W x + bias + b ⊙ B (d ⊙ A dropout(x))` (section 3.1).

    d starts at `d_initial` and b at zero, so that training starts at the base model. `factors` are A and B.
    """

    peft_type = "VERA"

    def __init__(self, base: nn.Module, factors: RandomFactors, d_initial: float = 0.1, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.factors, self.d_initial, self.dropout = factors, d_initial, nn.Dropout(dropout)
        factors.fit(self.in_dim, self.out_dim)
        self.init_adapter()

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh vectors on the device of the base weight, in its dtype unless another is given."""
        made = {"dtype": dtype or self.weight.dtype, "device": self.weight.device}
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.out_dim, **made))
        self.vera_lambda_d = nn.Parameter(torch.full((self.factors.rank,), self.d_initial, **made))

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within the module."""
        return ["vera_lambda_b", "vera_lambda_d"]

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        y = linear(x, self.weight, self.bias)
        if not self.enabled:
            return y
        a, b = (each.to(x.dtype) for each in self._own_factors())
        low = self.vera_lambda_d.to(x.dtype) * F.linear(self.dropout(x), a)  # [..., r]
        return y + (self.vera_lambda_b.to(x.dtype) * F.linear(low, b)).to(y.dtype)

    def _own_factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.factors.like(self.vera_lambda_d)
        return a[:, : self.in_dim], b[: self.out_dim]

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `W + (b ⊙ B) (d ⊙ A)` in float32, before they are rounded."""
        a, b = (each.float() for each in self._own_factors())
        a, b = self.vera_lambda_d.detach().float()[:, None] * a, self.vera_lambda_b.detach().float()[:, None] * b
        return merged_tiles(storage(self.weight if base is None else base), a, b, 1.0)

    def as_lora(self, rank: int | None = None) -> LoRALinear:
        """Return a LoRA of the same function, its alpha its rank: that of A and B, or `rank` with zeros."""
        a, b = self._own_factors()
        a, b = self.vera_lambda_d.detach()[:, None] * a, self.vera_lambda_b.detach()[:, None] * b
        return LoRALinear.of_factors(self, a, b, rank)


class VeRA:
    """VeRA, for `model.adapter`: `r` is the rank, far above LoRA's; `projection_prng_key` the seed of A and B."""

    def __init__(
        self, r: int = 256, d_initial: float = 0.1, projection_prng_key: int = 0, vera_dropout: float = 0.0
    ) -> None:
        if r < 1:
            raise ValueError(f"r {r} must be at least 1")
        self.factors = RandomFactors(r, projection_prng_key)
        self.d_initial, self.dropout = d_initial, vera_dropout

    def put(self, path: str, base: nn.Module) -> VeRALinear:
        """Put vectors on the projection `path`."""
        return VeRALinear(base, self.factors, self.d_initial, self.dropout)


class VeRAFile(PeftFile):
    """Of VeRA, with A and B in the file: a generator's stream is not a format."""

    peft_type = "VERA"
    names = {"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"}
    compared = {"r": WHOLE, "projection_prng_key": ("a whole number", lambda value: isinstance(value, int))}
    compared |= {"save_projection": SWITCH}
    harmless = HARMLESS | {"vera_dropout", "d_initial", "init_weights"}

    def tensors(self, adapted: Sequence[Projection]) -> dict[str, Tensor]:
        """Return the vectors of each projection, and A and B, by their names in the file."""
        vectors = super().tensors(adapted)
        adapter = adapted[0].parts[0]
        return vectors | dict(zip((SHARED_A, SHARED_B), adapter.factors.like(adapter.vera_lambda_d), strict=True))

    def expected(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return tensors of the shapes that a file must have; A and B only if it says that it has them."""
        expected = self.tensors(adapted)
        left_out = () if config.get("save_projection") else (SHARED_A, SHARED_B)
        return {name: tensor for name, tensor in expected.items() if name not in left_out}

    def assigned(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], values: Mapping[str, Tensor], source: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each live tensor with its value in a file, but for an A and B that are only in its seed."""
        for name, live in self.tensors(adapted).items():
            if name in values:
                yield live, values[name]

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a `VeraConfig`."""
        adapter = adapted[0].parts[0]
        return {
            "r": adapter.factors.rank,
            "projection_prng_key": adapter.factors.key,
            "save_projection": True,
            "vera_dropout": adapter.dropout.p,
            "d_initial": adapter.d_initial,
            "bias": "none",
            "fan_in_fan_out": False,
        }

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return VeRA and its rank."""
        return "VeRA", f", rank {config['r']}"

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where a config means other matrices than these adapters have."""
        factors = adapted[0].parts[0].factors
        problems = [f"r is {config['r']}, the model's is {factors.rank}"] if config["r"] != factors.rank else []
        if not config.get("save_projection") and (key := config["projection_prng_key"]) != factors.key:
            problems.append(f"projection_prng_key is {key}, the model's is {factors.key}")
        return problems

    def placed(
        self, config: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> Callable[[str, nn.Module], VeRALinear]:
        """Return `put(path, base)`, for projections that share one A and B."""
        return VeRA(
            config["r"],
            projection_prng_key=config["projection_prng_key"],
            vera_dropout=dropout_of(config, "vera_dropout"),
        ).put
