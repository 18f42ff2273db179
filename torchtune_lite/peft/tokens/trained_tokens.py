"""Tokens whose rows of the embedding, and of an output of its own, are trained in the place of frozen ones: new ones.

v vocabulary, d embed, n tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.kernels.nf4.linear import row_tiles
from torchtune_lite.modules import TiedOutput, TransformerDecoder
from torchtune_lite.modules.transformer import TokenEmbedding
from torchtune_lite.peft.peft_file import HARMLESS, PeftFile, Projection
from torchtune_lite.utils import counted

OCCUPIED = (
    "an output projection that carries an adapter or is in NF4; leave apply_lora_to_output and quantize_output out, "
    "and the output out of target_modules"
)


class TrainedRows(nn.Module):
    """A frozen matrix `weight [v, d]` with trained `rows [n, d]` in the place of those of the tokens `indices`.

    The rows start as the matrix has them. What it computes is a subclass's; it is an `Adapter`.
    """

    weight: nn.Parameter
    bias = None
    peft_type, starts_from_base = "TRAINABLE_TOKENS", False

    def take_over(self, weight: nn.Parameter, indices: Sequence[int]) -> None:
        """Set the matrix and the tokens, which must be different ones of it."""
        if len(set(indices)) != len(indices) or not all(0 <= index < len(weight) for index in indices):
            raise ValueError(f"the tokens {list(indices)} are not different ones of {len(weight)}")
        self.weight, self.indices, self.enabled = weight.requires_grad_(False), tuple(indices), True
        self.rows = nn.Parameter(weight.new_empty(len(indices), weight.shape[1]))
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def index(self, device: torch.device) -> Tensor:
        """Return the tokens on a device: `[n] int64`."""
        return self._tables(device)[0]

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the tokens `[n]`, and of each token of the vocabulary `[v]` its place among them, or -1."""
        if device not in self._on_device:
            with torch.inference_mode(False):  # a training may use them, too
                index = torch.tensor(self.indices, device=device)
                places = torch.full((len(self.weight),), -1, device=device)
                places[index] = torch.arange(len(index), device=device)
            self._on_device[device] = index, places
        return self._on_device[device]

    def start_from(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the matrix, of which all is kept."""
        return weight

    @torch.no_grad()
    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Let the rows start as the matrix has them, on its device, in its dtype unless another is given."""
        rows = self.weight[self.index(self.weight.device)]
        self.rows = nn.Parameter(rows.to(dtype or self.weight.dtype))

    def adapter_params(self) -> list[str]:
        """Return the name of the trained parameter within this module."""
        return ["rows"]

    @torch.no_grad()
    def merged_weight(self, base: Tensor | None = None) -> Tensor:
        """Return the matrix `[v, d]` with the trained rows in it; `base` takes the place of the frozen one."""
        base = self.weight if base is None else base
        return base.index_copy(0, self.index(base.device), self.rows.to(base))

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `merged_weight` with their values in float32, before they are rounded."""
        index = self.index(self.rows.device)
        for tile, values in row_tiles([self.weight if base is None else base], len(self.weight)):
            inside = (index >= tile.start) & (index < tile.stop)
            yield tile, values.float().index_copy(0, index[inside] - tile.start, self.rows[inside].float())

    def merged_bias(self) -> None:
        """Return that there is no bias."""
        return self.bias

    def as_lora(self, rank: int | None = None) -> None:
        """Return that there is none."""

    def training_state(self) -> dict[str, Tensor]:
        """Return nothing: the file has all."""
        return {}

    def restore_training(self, state: Mapping[str, Tensor]) -> None:
        """Take what `training_state` returned."""

    def logits(self, x: Tensor) -> Tensor:
        """Project `x [..., d]` to `[..., v]`."""
        logits = F.linear(x, self.weight)
        if not self.enabled:
            return logits
        return logits.index_copy_(-1, self.index(x.device), F.linear(x, self.rows.to(x.dtype)).to(logits.dtype))


class TrainedTokenEmbedding(TrainedRows, TokenEmbedding):
    """An embedding of which the rows of some tokens are trained; a tied output computes with them, too."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed `tokens [b, s] int64` as `[b, s, d]`."""
        embedded = F.embedding(tokens, self.weight)
        if not self.enabled:
            return embedded
        places = self._tables(tokens.device)[1][tokens]  # [b, s]
        rows = F.embedding(places.clamp(min=0), self.rows).to(embedded.dtype)
        return torch.where((places < 0)[..., None], embedded, rows)


class TrainedTokenOutput(TrainedRows):
    """An output projection of which the rows of some tokens are trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., d]` to logits `[..., v]`."""
        return self.logits(x)


class TokensFile(PeftFile):
    """Of the rows of some tokens, without any adapter: `TrainableTokensConfig`."""

    peft_type = "TRAINABLE_TOKENS"
    names = {"trainable_tokens_delta": "rows"}
    compared = {"token_indices": ("a list of tokens", lambda value: isinstance(value, list))}
    harmless = HARMLESS | {"init_weights"}
    on_projections = False

    def put_on(self, model: TransformerDecoder, config: Mapping[str, Any]) -> None:
        """Leave the rows to who puts those beside adapters, too."""

    def token_indices(self, config: Mapping[str, Any]) -> dict[str, list[int]]:
        """Return the tokens by modules."""
        targets = config["target_modules"]
        return dict.fromkeys([targets] if isinstance(targets, str) else targets, config["token_indices"])

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a `TrainableTokensConfig`."""
        return {"token_indices": list(adapted[0].parts[0].indices), "target_modules": list(targets)}

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return what it is called, and how many tokens there are."""
        return "trainable tokens", f", rows of {counted(len(config['token_indices']), 'token')}"

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where the tokens are others."""
        ours = list(adapted[0].parts[0].indices)
        given = config["token_indices"]
        return [] if given == ours else [f"token_indices is {given}, the model trains {ours}"]


def train_tokens(model: TransformerDecoder, embedding: Sequence[int], output: Sequence[int] = ()) -> None:
    """Let the rows of these tokens be trained in the embedding, and in the output of an untied model.

    ValueError where the output is not a plain projection.
    """
    if embedding:
        with torch.device("meta"):
            trained = TrainedTokenEmbedding(*model.tok_embeddings.weight.shape)
        trained.take_over(model.tok_embeddings.weight, embedding)
        model.tok_embeddings = trained
        if isinstance(model.output, TiedOutput):
            model.output = TiedOutput(trained, model.output.softcap)
    if output:
        if type(model.output) is not nn.Linear:
            raise ValueError(f"no row can be trained in {OCCUPIED}")
        trained = TrainedTokenOutput()
        trained.take_over(model.output.weight, output)
        model.output = trained


def train_embeddings(model: TransformerDecoder) -> None:
    """Let the whole embedding be trained, and the output of an untied model; ValueError as in `train_tokens`."""
    if not isinstance(model.output, TiedOutput | nn.Linear):
        raise ValueError(f"train_embeddings: all cannot train {OCCUPIED}")
    model.tok_embeddings.requires_grad_(True)
    if isinstance(model.output, nn.Linear):
        model.output.requires_grad_(True)
