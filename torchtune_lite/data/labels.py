"""Labels: the token that each position is to give, or none."""

from collections.abc import Sequence

from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted

CROSS_ENTROPY_IGNORE_IDX = -100
"""The label of a position without a loss."""


def shifted_labels(tokens: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """Label each position with the token that follows it, or -100 where that one is masked or there is none."""
    if len(tokens) != len(mask):
        raise DataError(
            f"the tokenizer gives {counted(len(mask), 'mark')} in mask for {counted(len(tokens), 'token')}; "
            "give each token one"
        )
    ignore = CROSS_ENTROPY_IGNORE_IDX
    return [ignore if masked else token for token, masked in zip(tokens[1:], mask[1:], strict=True)] + [ignore]


def has_label(labels: Sequence[int]) -> bool:
    """Return whether any position has a label."""
    return any(label != CROSS_ENTROPY_IGNORE_IDX for label in labels)
