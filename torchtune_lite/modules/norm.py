"""RMSNorm (arXiv 1910.07467).

d width of what is normed.
"""

import torch
from torch import Tensor, nn

from torchtune_lite.modules.replaceable import replaceable


@replaceable
def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """Divide each row of `x [..., d]` by its root mean square and multiply it by `offset + weight [d]`.

    Computes in float32, or float64 for float64, and rounds once, to the dtype of x.
    """
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return (values * scale * (offset + weight.to(values.dtype))).to(x.dtype)


class RMSNorm(nn.Module):
    """Norm over the last dimension with a trained weight; `offset` 1.0 for a weight that is stored less 1 (Gemma)."""

    def __init__(self, dim: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((dim,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        """Norm each row of `x [..., d]`."""
        return rms_norm(x, self.weight, self.eps, self.offset)

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"{len(self.weight)}, eps={self.eps}, offset={self.offset}"
