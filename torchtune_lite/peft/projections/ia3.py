"""IA3: learned factors on keys, values and the inner activations of the feed-forward (Liu et al., arXiv 2205.05638).

W [out, in], factors l [out, 1], or [1, in] in front of a feed-forward's last projection.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.kernels.nf4.linear import row_tiles
from torchtune_lite.peft.frozen import linear
from torchtune_lite.peft.nf4 import storage
from torchtune_lite.peft.peft_file import HARMLESS, PeftFile, Projection
from torchtune_lite.peft.projections.adapted import AdaptedLinear
from torchtune_lite.peft.targets import names
from torchtune_lite.utils.sharding import as_lies, local, spread, whole


class IA3Linear(AdaptedLinear):
    """A frozen projection whose outputs, or with `feedforward` inputs, are multiplied by trained factors.

    `y = l ⊙ (W x + bias)`, or `y = W (l ⊙ x) + bias` (section 3.3); l starts at one.
    """

    peft_type = "IA3"

    def __init__(self, base: nn.Module, feedforward: bool = False) -> None:
        super().__init__(base)
        self.feedforward = feedforward
        self.init_adapter()

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make factors of one."""
        shape = (1, self.in_dim) if self.feedforward else (self.out_dim, 1)
        made = torch.ones(shape, dtype=dtype or self.weight.dtype, device=self.weight.device)
        self.ia3_l = nn.Parameter(spread(getattr(self, "ia3_l", made), made))

    @property
    def input_params(self) -> tuple[str, ...]:
        """The trained parameters without a row for each output."""
        return ("ia3_l",) if self.feedforward else ()

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within the module."""
        return ["ia3_l"]

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        factors = self.ia3_l.flatten().to(x.dtype)
        if self.enabled and self.feedforward:
            x = x * factors
        y = linear(x, self.weight, self.bias)
        return y * factors.to(y.dtype) if self.enabled and not self.feedforward else y

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `l ⊙ W` with their values in float32, before they are rounded."""
        factors = self.ia3_l.detach()
        factors = (whole(factors) if self.feedforward else as_lies(factors, self.weight)).float()
        for rows, values in row_tiles(storage(self.weight if base is None else base), len(local(self.weight))):
            yield rows, values.float() * (factors if self.feedforward else factors[rows])

    def merged_bias(self) -> Tensor | None:
        """Return the bias `[out]`, multiplied as the outputs are."""
        if self.bias is None or self.feedforward:
            return self.bias
        bias, factors = local(self.bias), as_lies(self.ia3_l.detach(), self.bias)
        return (bias.float() * factors.flatten().float()).to(bias.dtype)


class IA3:
    """IA3, for `model.adapter`.

    `feedforward_modules` are those of the targets whose inputs are multiplied instead of their outputs, by the last
    part of a name, ours or transformers'.
    """

    def __init__(self, feedforward_modules: Sequence[str] = ("down_proj",)) -> None:
        self.feedforward_modules = set(feedforward_modules)

    def put(self, path: str, base: nn.Module) -> IA3Linear:
        """Put factors on the projection `path`."""
        last_parts = {name.rpartition(".")[2] for name in names(path)}
        return IA3Linear(base, feedforward=bool(last_parts & self.feedforward_modules))


class IA3File(PeftFile):
    """Of IA3."""

    peft_type = "IA3"
    names = {"ia3_l": "ia3_l"}
    harmless = HARMLESS | {"init_ia3_weights", "feedforward_modules"}  # the weights tell which side they multiply

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of an `IA3Config`."""
        of_inputs = [each.path for each in adapted if each.parts[0].feedforward]
        feedforward = [name for name in targets if any(path.endswith(name) for path in of_inputs)]
        return {"feedforward_modules": feedforward, "fan_in_fan_out": False, "init_ia3_weights": True}

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return IA3, which has no numbers."""
        return "IA3", ""

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return nothing: the shapes of the weights tell everything."""
        return []

    def placed(
        self, config: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> Callable[[str, nn.Module], IA3Linear]:
        """Return `put(path, base)`, which puts factors on the side of a projection that they have the shape of."""
        return lambda path, base: IA3Linear(base, feedforward=shapes[path]["ia3_l"][0] == 1)
