"""A frozen projection in NF4, and the product with a weight that may be in NF4."""

from torch import Tensor, nn

from torchtune_lite.kernels.fused_lora import LowRank
from torchtune_lite.kernels.nf4 import linear as products
from torchtune_lite.peft.nf4 import quantize, storage


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x Wᵀ + bias  [..., out]` of `x [..., in]` and a frozen `weight [out, in]`, plain or NF4."""
    y = products.linear(x, storage(weight), weight.shape[0])
    return y if bias is None else y + bias.to(y.dtype)


class FrozenNF4Linear(nn.Module):
    """A frozen projection kept in NF4; raise ValueError unless `in_dim · out_dim` is divisible by 16,384."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        base = nn.Linear(in_dim, out_dim, bias=bias).requires_grad_(False)
        self.weight, self.bias = nn.Parameter(quantize(base.weight), requires_grad=False), base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        return linear(x, self.weight, self.bias)

    def low_rank(self) -> LowRank:
        """Return the projection as the fused products take it."""
        return LowRank(storage(self.weight), self.out_dim, self.bias)
