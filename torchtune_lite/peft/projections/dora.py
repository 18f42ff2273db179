"""DoRA: weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353).

r rank; W [out, in], A [r, in], B [out, r], magnitude m [out].
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from torchtune_lite.peft.frozen import linear
from torchtune_lite.peft.nf4 import storage
from torchtune_lite.peft.projections.lora import LoRALinear, merged_tiles
from torchtune_lite.utils.sharding import as_lies, is_sharded, spread, whole, with_rows


class DoRALinear(LoRALinear):
    """A frozen projection whose magnitude and direction are trained apart.

    `y = m / ‖W + s B A‖ · (W x + s B A dropout(x)) + bias`, with the scale s of `LoRALinear`.

    The norm is taken per output row and carries no gradient (section 4.3). m starts as ‖W‖, so that training starts at
    the base model. Arguments are those of `LoRALinear`.
    """

    use_dora = True

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh adapter parameters; the magnitude is the row norm of the base weight, which must be loaded."""
        super().init_adapter(dtype)
        norms = self._norms().to(self.lora_a.weight.dtype)
        old = getattr(self, "magnitude", norms)
        self.magnitude = nn.Parameter(with_rows(old, norms) if is_sharded(self.weight) else spread(old, norms))

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within this module."""
        return [*super().adapter_params(), "magnitude"]

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        y = linear(x, self.weight)
        if self.enabled:
            scale = self.magnitude / self._norms().to(self.magnitude.dtype)
            y = scale.to(y.dtype) * (y + self.update(x).to(y.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def as_lora(self, rank: int | None = None) -> None:
        """Return None: the magnitudes are no update of low rank."""
        return

    def _norms(self) -> Tensor:
        a, b = whole(self.lora_a.weight.detach()), as_lies(self.lora_b.weight.detach(), self.weight)
        return _row_norms(storage(self.weight), a, b, self.scaling)

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `merged_weight` with their values in float32, before they are rounded."""
        magnitude = as_lies(self.magnitude, self.weight)
        for rows, values in super().merged_tiles(base):
            yield rows, values * (magnitude[rows].float() / values.norm(dim=1))[:, None]


@torch.library.custom_op("torchtune_lite::row_norms", mutates_args=())
def _row_norms(weight: list[Tensor], a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return the length of each row of `W + scaling · B A`, `[out]` float32.

    One operator to `torch.compile`, which would otherwise unroll the tiles.
    """
    return torch.cat([values.norm(dim=1) for _, values in merged_tiles(weight, a, b, scaling)])


@_row_norms.register_fake
def _(weight, a, b, scaling):
    return b.new_empty(len(b), dtype=torch.float32)
