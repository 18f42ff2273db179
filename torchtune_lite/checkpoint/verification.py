"""Compares a live model with the one that was written, which is evaluated from its files: no second model in memory.

b rows, s tokens of a row, d embed_dim, v vocab_size.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.checkpoint.model_weights import load_weights, merged_weights, unrounded_weights
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.peft import adapter_modules
from torchtune_lite.utils import counted

TILE = 1 << 21  # values of a weight that are cast and moved at a time
TOKENS = 64  # whose logits are held at a time


@dataclass(frozen=True)
class Difference:
    """How far the logits of two models are apart: `largest` and `mean` absolute difference over `num_tokens` tokens.

    The dtype is known to make mean differences of `computing` (to a pass through the written model) and `rounding` (by
    rounding merged weights); `scale` is the root mean square of the written model's logits.
    """

    largest: float
    mean: float
    computing: float
    rounding: float
    scale: float
    num_tokens: int

    @property
    def limit(self) -> float:
        """The largest `mean` that the dtype explains.

        Live and written model each differ from exact arithmetic by about `computing`, their weights by `rounding`. The
        second term is needed: an update below half a step of bfloat16 is rounded away whole, not at random. Measured
        (LoRA, DoRA, QLoRA and full training of two small models and one 1024 wide, learning rates 1e-5 to 2e-2): right
        merges come to 0.4 of this limit at most, in float32 to 0.01; an adapter that was not merged or not scaled is
        beyond it as soon as the dtype shows what was trained.
        """
        return 4 * self.computing + self.rounding + 1e-4 * self.scale

    @property
    def explained(self) -> bool:
        """Tells whether the dtype explains the difference; NaN is not explained."""
        return self.mean <= self.limit

    def __str__(self) -> str:
        tokens = counted(self.num_tokens, "token")
        return f"logits differ by at most {self.largest:.2g}, on average {self.mean:.2g}, over {tokens}"


@torch.no_grad()
def compare(model: TransformerDecoder, weights: Mapping[str, Weight], rows: Tensor) -> Difference:
    """Compares the logits of `model` with those of a plain model of `weights` on `rows [b, s] int64`.

    What the dtype explains is measured beside it: the written model is computed in float32 too, and where adapters were
    merged in less than float32, so is the live model with its merged weights, rounded and not. Leaves `model` in its
    mode and draws no random number.
    """
    device, dtype = model.tok_embeddings.weight.device, model.tok_embeddings.weight.dtype
    rows, was_training = rows.to(device), model.training
    build = partial(streamed, type(model), model.config, device=device)
    models = {"live": model, "written": build(weights, dtype=dtype), "float32": build(weights, dtype=torch.float32)}
    if adapter_modules(model) and dtype != torch.float32:
        models["rounded"] = build(merged_weights(model), dtype=torch.float32)
        models["exact"] = build(unrounded_weights(model), dtype=torch.float32)
    model.eval()
    try:
        sums = _sums(models, rows)
    finally:
        model.train(was_training)
    count = rows.numel() * model.config.vocab_size
    return Difference(
        largest=sums["largest"],
        mean=sums["difference"] / count,
        computing=sums["computing"] / count,
        rounding=sums["rounding"] / count,
        scale=(sums["square"] / count) ** 0.5,
        num_tokens=rows.numel(),
    )


def _sums(models: Mapping[str, TransformerDecoder], rows: Tensor) -> Counter[str]:
    """Runs all models and sums up over all logits, of `TOKENS` tokens at a time."""
    states = {name: model(rows, skip_output=True).flatten(0, 1) for name, model in models.items()}  # [b · s, d]
    sums: Counter[str] = Counter()
    for start in range(0, rows.numel(), TOKENS):
        logits = {
            name: model.output(states[name][start : start + TOKENS]).float() for name, model in models.items()
        }  # [64, v]
        difference = (logits["live"] - logits["written"]).abs_()
        sums["largest"] = max(sums["largest"], difference.max().item())
        sums["difference"] += difference.sum().item()
        sums["computing"] += (logits["written"] - logits["float32"]).abs_().sum().item()
        if "exact" in models:
            sums["rounding"] += (logits["rounded"] - logits["exact"]).abs_().sum().item()
        sums["square"] += logits["float32"].square_().sum().item()
    return sums


def streamed(
    kind: type[TransformerDecoder],
    config: DecoderConfig,
    weights: Mapping[str, Weight],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> TransformerDecoder:
    """Builds a decoder that computes in `dtype` on `device`; all `weights` but those of norms are read in each call."""
    with torch.device("meta"):
        model = kind(config, lambda name, in_dim, out_dim, bias=False: StreamedLinear())
    model.tok_embeddings = StreamedEmbedding(weights["tok_embeddings.weight"], dtype)
    for name, module in model.named_modules():
        if isinstance(module, StreamedLinear):
            module.source = weights[f"{name}.weight"]
    rest = {name: weights[name] for name, _ in model.named_parameters()}
    load_weights(model, rest, device=device, dtype=dtype, source="the written model")
    return model.eval()


class StreamedLinear(nn.Module):
    """A projection that reads its weight `source [out, in]` when it is called, and drops it tile by tile."""

    source: Weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x [..., in]` to `[..., out]`."""
        weight = self.source.read()
        tiles = weight.split(max(TILE // weight.shape[1], 1))
        return torch.cat([F.linear(x, tile.to(x)) for tile in tiles], dim=-1)


class StreamedEmbedding(nn.Module):
    """An embedding that reads the rows it needs from `source [v, d]`."""

    def __init__(self, source: Weight, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.dtype = source, dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps `tokens [b, s]` to `[b, s, d]`."""
        weight = self.source.read()
        return weight[tokens.to(weight.device)].to(tokens.device, self.dtype)
