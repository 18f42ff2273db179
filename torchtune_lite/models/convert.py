"""Between our parameter names and layout and those of checkpoints.

Ours is the half-split rotary layout of Hugging Face, so an HF checkpoint is only renamed. Meta's checkpoints interleave
the two halves of each head, so the rows of q and k are permuted, here and nowhere else.

h heads (of q, or kv heads of k), e head width.
"""

import re

from torch import Tensor

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def rename(table: dict[str, str], name: str) -> str | None:
    """Looks `name` up in `table`, whose `{}` stands for the number of the layer; None when the table lacks it."""
    number = _LAYER.search(name)
    target = table.get(_LAYER.sub("{}", name, count=1))
    return target and target.format(number.group() if number else "")


def permute_from_meta(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of `weight [h · e, in]` within each head from interleaved pairs to half-split."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def permute_to_meta(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of `weight [h · e, in]` within each head from half-split to interleaved pairs."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
