"""How far an exported model is from its source: both are run over a text, layer by layer, with one layer in memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.merged_base import filled
from torchtune_lite.export.source import Source
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.utils import counted

TEXT = (
    "The library opened in 1911, on the corner of Mill Street and 3rd Avenue. It lends 12,480 books, most of them for "
    'two weeks; "and on Sundays," the keeper says, "we read aloud." 高雄市立圖書館 opens at 09:30.\n\n'
    "def mean(values):\n    return sum(values) / len(values)\n"
)
LENGTH = 64  # tokens
LIKELY = 0.01  # the probability from which on a token counts for the largest difference


@dataclass(frozen=True)
class Difference:
    """Between two models over a text: the largest in the log-probability of a likely token, the mean divergence."""

    largest: float
    divergence: float
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"log-probabilities above 1 % are off from the source's by at most {self.largest:.2g}, "
            f"the mean divergence is {self.divergence:.2g} ({counted(self.num_tokens, 'token')} of a text)"
        )


@torch.no_grad()
def compare(source: Source, model: TransformerDecoder, weights: Mapping[str, Weight]) -> Difference:
    """Compare the live source with a plain `model` on the meta device of these weights by our names, in float32."""
    return difference(source, (source.model, source.base), (model, weights))


@torch.no_grad()
def difference(source: Source, *models: tuple[TransformerDecoder, Mapping[str, Weight]]) -> Difference:
    """Compare the second of two models with the first, each with its weights, by the tokenizer of `source`."""
    length = min(LENGTH, source.config.max_seq_len)
    tokens = torch.tensor([source.tokenizer.encode(TEXT, add_bos=True, add_eos=False)[:length]])
    ours, theirs = (log_probs(model, weights, tokens) for model, weights in models)
    likely = (ours.exp() > LIKELY) | (ours == ours.amax(-1, keepdim=True))
    divergence = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    return Difference((ours - theirs)[likely].abs().max().item(), max(divergence, 0.0), tokens.shape[1])


def log_probs(model: TransformerDecoder, weights: Mapping[str, Weight], tokens: Tensor) -> Tensor:
    """Return the log-probabilities `[b, s, v]` after each of `tokens [b, s]`; weights are read part by part."""
    with _streamed(model, weights):
        return model(tokens).log_softmax(-1)


@contextmanager
def _streamed(model: TransformerDecoder, weights: Mapping[str, Weight]) -> Iterator[None]:
    """Let the embedding, each layer, the last norm and the output have their weights while they run, and no longer."""
    groups = {part: dict(group) for part, group in groupby(sorted(weights.items()), key=lambda item: _part(item[0]))}
    groups.setdefault("output", groups["tok_embeddings"])  # which is then the embedding
    modules = {part: model.get_submodule(part) for part in groups}
    for part, module in modules.items():
        module.forward = _filling(model, module, groups[part])
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _part(name: str) -> str:
    first, number, *_ = name.split(".")
    return f"{first}.{number}" if first == "layers" else first


def _filling(model: TransformerDecoder, module: nn.Module, weights: Mapping[str, Weight]) -> Callable[..., Tensor]:
    forward = module.forward

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        with filled(model, weights):
            return forward(*args, **kwargs)

    return call
