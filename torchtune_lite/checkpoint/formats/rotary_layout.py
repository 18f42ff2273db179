"""The two orders of the rows that a rotation turns in pairs: half-split, as here and in HF, and interleaved.

Meta's files, and llama.cpp's of a Llama and its like, pair neighbours; the others pair row i of a head with i + e/2.
"""

from torch import Tensor


def half_split(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows `[h · e, ...]` within each head from interleaved pairs."""
    return tensor.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def interleaved(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows `[h · e, ...]` within each head to interleaved pairs: the reverse of `half_split`."""
    return tensor.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
