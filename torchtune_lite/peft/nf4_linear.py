"""Products with an NF4 weight, which is decoded tile by tile on the way and never kept.

T tokens; W [out, in].
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft.nf4 import is_quantized, nf4_parts, quantize
from torchtune_lite.peft.nf4_codes import TILE, Parts, Tiles


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Gives `x Wᵀ [..., out]` of `x [..., in]` and a frozen `weight [out, in]`, plain or NF4.

    An NF4 weight is decoded in the forward pass and once more in the backward pass, which keeps nothing of it; equal to
    the product with the dequantised weight, cast to the dtype of x, or to that of autocast where it is on.
    """
    if not is_quantized(weight):
        return F.linear(x, weight)
    x = x.to(autocast_dtype(x.device) or x.dtype)
    return _product(x, *nf4_parts(weight), rows=weight.shape[0], transposed=True)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Gives the dtype that autocast computes products in on `device`; None where it is off or the device has none."""
    is_on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else None


def linear_t(grad: Tensor, weight: Tensor, add_to: Tensor | None = None) -> Tensor:
    """Gives `grad W [T, in]` of `grad [T, out]`, the gradient of what `linear` takes, or adds it to `add_to`."""
    if not is_quantized(weight):
        return grad @ weight if add_to is None else add_to.addmm_(grad, weight)
    if add_to is None:
        return _product(grad, *nf4_parts(weight), rows=weight.shape[0], transposed=False)
    _add_product(add_to, grad, stored(weight), weight.shape[0])
    return add_to


@torch.library.custom_op("torchtune_lite::nf4_product", mutates_args=())
def _product(
    x: Tensor,
    quantized_data: Tensor,
    quantized_scalers: Tensor,
    quantization_factor: Tensor,
    scaler_mean: Tensor,
    nf4: Tensor,
    rows: int,
    transposed: bool,
) -> Tensor:
    """Gives `x Wᵀ` or, not `transposed`, `x W` of a weight with so many rows.

    One operator to `torch.compile`, which would otherwise save the decoded weight for the backward pass.
    """
    tiles = Tiles(Parts(quantized_data, quantized_scalers, quantization_factor, scaler_mean, nf4), rows)
    tokens = x.reshape(-1, x.shape[-1])  # [T, in or out]
    y = x.new_empty(*x.shape[:-1], _width(quantized_data, rows, transposed))
    products = y.view(-1, y.shape[-1])
    if transposed:
        for span, values in tiles.by_rows():
            torch.mm(tokens, values.to(x.dtype).t(), out=products[:, span])
    else:
        for span, values in tiles.by_cols():  # not by rows, whose products would have to be added in low precision
            torch.mm(tokens, values.to(x.dtype), out=products[:, span])
    return y


@torch.library.custom_op("torchtune_lite::nf4_add_product", mutates_args=("y",))
def _add_product(y: Tensor, x: Tensor, weight: list[Tensor], rows: int) -> None:
    """Adds to `y [T, in]` the product `x W` of `x [T, out]` and a `stored` NF4 weight with so many rows."""
    for span, values in Tiles(Parts(*weight), rows).by_cols():
        y[:, span].addmm_(x, values.to(x.dtype))


@_add_product.register_fake
def _(y, x, weight, rows):
    return None


def _width(quantized_data: Tensor, rows: int, transposed: bool) -> int:
    return rows if transposed else quantized_data.numel() * 2 // rows


@_product.register_fake
def _(x, quantized_data, quantized_scalers, quantization_factor, scaler_mean, nf4, rows, transposed):
    return x.new_empty(*x.shape[:-1], _width(quantized_data, rows, transposed))


def _save(ctx, inputs, output) -> None:
    _, *parts, ctx.rows, ctx.transposed = inputs
    ctx.save_for_backward(*parts)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _product(grad, *ctx.saved_tensors, ctx.rows, not ctx.transposed), *[None] * 7


_product.register_autograd(_backward, setup_context=_save)


def stored(weight: Tensor) -> list[Tensor]:
    """Gives the plain tensors that a weight, plain or NF4, is stored in: what an operator can take."""
    return list(nf4_parts(weight)) if is_quantized(weight) else [weight]


def row_tiles(weight: Sequence[Tensor], rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of the rows of a `stored` weight `[rows, in]` with their values `[rows of the slice, in]`.

    Values are valid until the next are asked for.
    """
    if len(weight) > 1:
        yield from Tiles(Parts(*weight), rows).by_rows()
        return
    [plain] = weight
    size = TILE if plain.device.type == "cpu" else 32 * TILE
    step = max(size // plain.shape[1], 1)
    for start in range(0, rows, step):
        span = slice(start, min(start + step, rows))
        yield span, plain[span]


class FrozenNF4Linear(nn.Module):
    """A frozen projection without bias, kept in NF4; ValueError unless `in_dim · out_dim` is divisible by 16,384."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        weight = nn.Linear(in_dim, out_dim, bias=False).weight
        self.weight = nn.Parameter(quantize(weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., in]` to `[..., out]`."""
        return linear(x, self.weight)
