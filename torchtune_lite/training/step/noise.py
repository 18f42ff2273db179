"""NEFTune: noise on the embeddings in training (Jain et al., arXiv 2310.05914, section 2)."""

from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.utils import to_device


def add_neftune_noise(model: TransformerDecoder, alpha: float | None) -> None:
    """Add to each embedding of a `model` in training uniform noise of up to `alpha / √(L d)`; None: none.

    L is the length of its sequence: in a row of several, of each one's own, as if it were alone; padded, of the row.
    The paper tries alpha from 5 to 15.
    """
    if alpha is None:
        return
    seq_lens: list[int] | None = None

    def note_lengths(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal seq_lens
        seq_lens = kwargs.get("seq_lens")

    def add_noise(module: nn.Module, args: tuple, embedded: Tensor) -> Tensor:
        if not model.training:
            return embedded
        row, dim = embedded.shape[1:]
        lengths = torch.tensor([length for length in seq_lens or [row] for _ in range(length)])  # [s]
        bound = to_device(alpha / (lengths * dim).sqrt(), embedded.device).to(embedded.dtype)
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * bound[:, None]

    model.register_forward_pre_hook(note_lengths, with_kwargs=True)
    model.tok_embeddings.register_forward_hook(add_noise)
