"""Products with a frozen weight, plain or NF4; an NF4 weight is decoded tile by tile on the way and never kept.

T tokens; W [out, in].
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_lite.kernels.nf4.codec import TILE, NF4Weight, Tiles

Storage = Sequence[Tensor]
"""The plain tensors of a weight: itself, or those of an `NF4Weight`. What an operator of torch can take."""


def linear(x: Tensor, weight: Storage, out_dim: int) -> Tensor:
    """Return `x Wᵀ [..., out]` of `x [..., in]` and a frozen weight.

    An NF4 weight is decoded in the forward pass and once more in the backward pass, which keeps nothing of it; equal to
    the product with the dequantised weight, cast to the dtype of x, or to that of autocast where it is on.
    """
    if len(weight) == 1:
        return F.linear(x, weight[0])
    x = x.to(autocast_dtype(x.device) or x.dtype)
    return _product(x, *weight, rows=out_dim, transposed=True)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype in which autocast computes products on `device`; None where it is off."""
    is_on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else None


def linear_t(grad: Tensor, weight: Storage, add_to: Tensor | None = None) -> Tensor:
    """Return `grad W [T, in]` of `grad [T, out]`, the gradient of the input of `linear`, or add it to `add_to`."""
    if len(weight) == 1:
        return grad @ weight[0] if add_to is None else add_to.addmm_(grad, weight[0])
    if add_to is None:
        return _product(grad, *weight, rows=grad.shape[1], transposed=False)
    _add_product(add_to, grad, list(weight))
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
    """Return `x Wᵀ` or, not `transposed`, `x W` of a weight with so many rows.

    One operator to `torch.compile`, which would otherwise save the decoded weight for the backward pass.
    """
    tiles = Tiles(NF4Weight(quantized_data, quantized_scalers, quantization_factor, scaler_mean, nf4), rows)
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
def _add_product(y: Tensor, x: Tensor, weight: list[Tensor]) -> None:
    """Add to `y [T, in]` the product `x W` of `x [T, out]` and an NF4 weight."""
    for span, values in Tiles(NF4Weight(*weight), x.shape[1]).by_cols():
        y[:, span].addmm_(x, values.to(x.dtype))


@_add_product.register_fake
def _(y, x, weight):
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


def row_tiles(weight: Storage, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the rows of a weight `[rows, in]` with their values `[rows of the slice, in]`.

    Values are valid until the next are asked for.
    """
    if len(weight) > 1:
        yield from Tiles(NF4Weight(*weight), rows).by_rows()
        return
    [plain] = weight
    size = TILE if plain.device.type == "cpu" else 32 * TILE
    step = max(size // plain.shape[1], 1)
    for start in range(0, rows, step):
        span = slice(start, min(start + step, rows))
        yield span, plain[span]
