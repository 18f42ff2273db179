"""What the batches of a validation add up to."""

import math
from collections.abc import Mapping, Sequence

Sums = Sequence[tuple[float, int]]
"""Of each batch, the sum of the loss and the label tokens."""


def mean_losses(sums: Mapping[str, Sums]) -> dict[str, float]:
    """Returns `val_loss`, the mean over the label tokens of all data sets, and `val_loss/NAME`, that over each one's.

    That of a data set whose name is empty is left out, the only one. Without a label token a mean is nan.
    """
    losses = {"val_loss": _mean([pair for each in sums.values() for pair in each])}
    return losses | {f"val_loss/{name}": _mean(each) for name, each in sums.items() if name}


def _mean(sums: Sums) -> float:
    num_tokens = sum(count for _, count in sums)
    return sum(loss for loss, _ in sums) / num_tokens if num_tokens else math.nan
