"""The logits of a classifier for a whole sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sequence_values(values: Tensor, seq_lens: Sequence[int]) -> Tensor:
    """Return the values `[n, c]` of the last token of each of n sequences, which have seen all of it.

    `values` are the output of a model with `num_classes` c: `[n, s, c]`, padded on the right, or `[1, t, c]` of
    sequences in one row (`model(…, seq_lens=…)`). This is what transformers' sequence classifiers and torchtune's
    reward models return.
    """
    lens = torch.tensor(seq_lens, device=values.device)
    if len(values) == len(lens):
        return values[torch.arange(len(lens), device=values.device), lens - 1]
    return values[0, lens.cumsum(0) - 1]
