"""The language-modelling loss, without logits for tokens that carry no label.

b batch, s sequence, d embed, n label tokens, v vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LinearCrossEntropyLoss(nn.Module):
    """Cross-entropy summed over the label tokens, with the output projection inside it.

    Only the rows of the hidden states that have a label are projected, `chunk_size` rows at a time, and each chunk's
    logits are recomputed in the backward pass: at most `chunk_size · v` logits exist at once. Softmax and sum are in
    float32. The sum, not the mean: the caller divides by the label tokens of the whole optimizer step.
    """

    def __init__(self, chunk_size: int = 1024, ignore_index: int = -100) -> None:
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"chunk_size {chunk_size} must be at least 1")
        self.chunk_size, self.ignore_index = chunk_size, ignore_index

    def forward(self, output: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
        """Sums the loss of `output(hidden [b, s, d])` against `labels [b, s] int64`: float32, 0 without any label."""
        rows = (labels != self.ignore_index).flatten().nonzero().squeeze(1)
        hidden, labels = hidden.flatten(0, 1)[rows], labels.flatten()[rows]  # [n, d], [n]
        if len(rows) <= self.chunk_size:
            return self._sum(output, hidden, labels)
        chunks = zip(hidden.split(self.chunk_size), labels.split(self.chunk_size), strict=True)
        return torch.stack([checkpoint(self._sum, output, h, y, use_reentrant=False) for h, y in chunks]).sum()

    def _sum(self, output: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output(hidden).float(), labels, reduction="sum")


CEWithChunkedOutputLoss = LinearCrossEntropyLoss
"""torchtune's older name for a loss that never holds all logits; `LinearCrossEntropyLoss` is it."""
