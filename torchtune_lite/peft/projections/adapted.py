"""What the adapters of a projection have in common: its frozen weight and bias, and how these are merged."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from torchtune_lite.utils.sharding import local


class AdaptedLinear(nn.Module):
    """A frozen projection, plain or NF4, whose weight and bias an adapter takes over; see `Adapter`."""

    starts_from_base = False

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.out_dim, self.in_dim = base.weight.shape
        self.weight, self.bias = base.requires_grad_(False).weight, base.bias
        self.enabled = True

    def start_from(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight as it is: all of it stays frozen."""
        return weight

    @torch.no_grad()
    def merged_weight(self, base: Tensor | None = None) -> Tensor:
        """Return the weight `[out, in]` of a plain projection of the same function, summed in float32, in W's dtype.

        Of a sharded W, that is its rows here. An NF4 W is dequantised; `base` takes the place of W. The result is the
        only tensor of that size that is made.
        """
        merged = torch.empty(local(self.weight).shape, dtype=self.weight.dtype, device=self.weight.device)
        for rows, values in self.merged_tiles(base):
            merged[rows] = values
        return merged

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `merged_weight` with their values in float32, before they are rounded."""
        raise NotImplementedError

    def merged_bias(self) -> Tensor | None:
        """Return the bias `[out]` of a plain projection of the same function."""
        return self.bias

    def as_lora(self, rank: int | None = None) -> nn.Module | None:
        """Return a LoRA of the same function, of `rank` if it is given; None where there is none."""
        return None

    def training_state(self) -> dict[str, Tensor]:
        """Return nothing: the trained parameters, which its file has, are all that a training goes on from."""
        return {}

    def restore_training(self, state: Mapping[str, Tensor]) -> None:
        """Take what `training_state` returned."""
