"""DoRA: weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353).

r rank; W [out, in], A [r, in], B [out, r], magnitude m [out].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft.lora import LoRALinear


class DoRALinear(LoRALinear):
    """A frozen projection whose magnitude and direction are trained apart.

    `y = m / ‖W + s B A‖ · (W x + s B A dropout(x))`, s = alpha / r.

    The norm is taken per output row and carries no gradient (section 4.3). m starts as ‖W‖, so that training starts at
    the base model. Arguments are those of `LoRALinear`.
    """

    def init_adapter(self) -> None:
        """Makes fresh adapter parameters; the magnitude is the row norm of the base weight, which must be loaded."""
        super().init_adapter()
        self.magnitude = nn.Parameter(self._norm())

    def adapter_params(self) -> list[str]:
        """Names of the trained parameters within this module."""
        return [*super().adapter_params(), "magnitude"]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., in]` to `[..., out]`."""
        return self.magnitude / self._norm() * (F.linear(x, self.weight) + self._update(x))

    @torch.no_grad()
    def _norm(self) -> Tensor:
        return super()._merged_float32().norm(dim=1).to(self.weight.dtype)  # [out]

    def _merged_float32(self) -> Tensor:
        direction = super()._merged_float32()
        return (self.magnitude.float() / direction.norm(dim=1))[:, None] * direction
