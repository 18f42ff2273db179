"""Prompt tuning, prefix tuning and P-tuning: virtual tokens before each sequence, and what makes them.

k virtual tokens, d embed, h encoder_hidden_size.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.peft.tokens.virtual_tokens import PrefixDecoder, PromptDecoder, VirtualTokensDecoder, put_before
from torchtune_lite.utils import get_logger

INITS = ("RANDOM", "TEXT")
ENCODERS = ("MLP", "LSTM")


class LSTMEncoder(nn.Module):
    """A bidirectional LSTM over the virtual tokens as one sequence, and a feed-forward behind it."""

    def __init__(self, dim: int, hidden: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm_head = nn.LSTM(dim, hidden, num_layers, dropout=dropout, bidirectional=True)
        self.mlp_head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [k, d]` to `[k, d]`."""
        return self.mlp_head(self.lstm_head(x)[0])


class VirtualTokens(nn.Module):
    """Makes the virtual tokens `[k, width]`: an embedding, and an `encoder` behind it unless that is None.

    `fields` are those of PEFT's config that are the method's own; `base` is the embedding of the model, whose device
    and dtype these parameters have, and `scale` what its rows are multiplied by. It is an `Adapter`.
    """

    starts_from_base = False

    def __init__(
        self,
        peft_type: str,
        num_tokens: int,
        dim: int,
        encoder: nn.Module | None,
        fields: Mapping[str, Any],
        base: nn.Module,
        scale: float,
    ) -> None:
        super().__init__()
        self.peft_type, self.num_tokens, self.fields = peft_type, num_tokens, dict(fields)
        self._base, self.scale = (base,), scale
        self.embedding, self.encoder = nn.Embedding(num_tokens, dim), encoder
        self.enabled, self.text, self.start = True, "", list[int]()

    def forward(self) -> Tensor:
        """Return the virtual tokens `[k, width]`."""
        return self.embedding.weight if self.encoder is None else self.encoder(self.embedding.weight)

    @torch.no_grad()
    def made(self) -> Tensor:
        """Return the virtual tokens as they are without dropout: what a file has of them."""
        was_training = self.training
        self.eval()
        try:
            return self()
        finally:
            self.train(was_training)

    def read_text(self, tokenizer: Any) -> None:
        """Let the virtual tokens of `text` start as its tokens, repeated or cut to their number."""
        if not self.text:
            return
        tokens = tokenizer.encode(self.text, add_bos=getattr(tokenizer, "adds_bos", True), add_eos=False)
        if not tokens:
            raise ConfigError("prompt_tuning_init_text is empty; give the text that the virtual tokens start as")
        if len(tokens) > self.num_tokens:
            get_logger().warning(
                "prompt_tuning_init_text has %d tokens, of which num_virtual_tokens: %d are the start",
                *(len(tokens), self.num_tokens),
            )
        self.start = (tokens * -(-self.num_tokens // len(tokens)))[: self.num_tokens]

    @torch.no_grad()
    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh parameters; embeddings start as those of `text`, or as wide-spread as the model's are."""
        [base] = self._base
        self.to_empty(device=base.weight.device)
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.to(dtype or base.weight.dtype)
        if self.peft_type == "PROMPT_TUNING":
            start = base.weight[self.start] if self.start else self.embedding.weight * base.weight.float().std()
            self.embedding.weight.copy_(start * self.scale)

    def drop_encoder(self) -> None:
        """Let the virtual tokens stand by themselves, as a file has them."""
        made = self.made()
        self.embedding = nn.Embedding(*made.shape, device=made.device, dtype=made.dtype)
        self.encoder = None

    def adapter_params(self) -> list[str]:
        """Return the names of the parameters."""
        return [name for name, _ in self.named_parameters()]

    def training_state(self) -> dict[str, Tensor]:
        """Return the embedding and the encoder, of which the file has only the output."""
        return {} if self.encoder is None else dict(self.named_parameters())

    @torch.no_grad()
    def restore_training(self, state: Mapping[str, Tensor]) -> None:
        """Take what `training_state` returned."""
        for name, param in self.named_parameters():
            param.copy_(state[name])


def checked_width(encoder_hidden_size: int | None) -> int | None:
    """Return the width of an encoder, None for that of the model; ValueError for less than 1."""
    if encoder_hidden_size is not None and encoder_hidden_size < 1:
        raise ValueError(f"encoder_hidden_size is {encoder_hidden_size}; it must be at least 1, or null")
    return encoder_hidden_size


class VirtualTokensMethod:
    """What the methods for `model.adapter` have in common: virtual tokens, which are put before each sequence."""

    peft_type: ClassVar[str]
    decoder: ClassVar[type[VirtualTokensDecoder]] = PromptDecoder
    text = ""

    def __init__(self, num_virtual_tokens: int) -> None:
        if not isinstance(num_virtual_tokens, int) or num_virtual_tokens < 1:
            raise ValueError(f"num_virtual_tokens is {num_virtual_tokens!r}; it must be a whole number of at least 1")
        self.num_virtual_tokens = num_virtual_tokens

    def put_on(self, model: TransformerDecoder) -> None:
        """Let virtual tokens stand before each sequence of `model`; ValueError for more than it has positions."""
        dim, encoder = self.parts(model.config)
        fields, scale = self.fields(model.config), model.config.embed_scale
        tokens = self.num_virtual_tokens, dim, encoder, fields, model.tok_embeddings, scale
        put_before(model, VirtualTokens(self.peft_type, *tokens), self.decoder)
        model.prompt.text = self.text

    def parts(self, config: DecoderConfig) -> tuple[int, nn.Module | None]:
        """Return the width of the embedding, and the encoder behind it; None: none."""
        return config.embed_dim, None

    def fields(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the fields of PEFT's config that are this method's own."""
        heads, layers = config.num_heads, config.num_layers
        return {"token_dim": config.embed_dim, "num_attention_heads": heads, "num_layers": layers}


class PromptTuning(VirtualTokensMethod):
    """Prompt tuning (Lester et al., arXiv 2104.08691), for `model.adapter`: trained embeddings before each sequence.

    `prompt_tuning_init` RANDOM draws them with the spread of the model's embedding, where PEFT draws from N(0, 1),
    which is far wider; TEXT starts them as the tokens of `prompt_tuning_init_text`.
    """

    peft_type = "PROMPT_TUNING"

    def __init__(
        self, num_virtual_tokens: int, prompt_tuning_init: str = "RANDOM", prompt_tuning_init_text: str | None = None
    ) -> None:
        super().__init__(num_virtual_tokens)
        if prompt_tuning_init not in INITS:
            raise ValueError(f"prompt_tuning_init is {prompt_tuning_init!r}; allowed are {', '.join(INITS)}")
        if (prompt_tuning_init == "TEXT") != bool(prompt_tuning_init_text):
            raise ValueError("prompt_tuning_init: TEXT and prompt_tuning_init_text go together; set both or neither")
        self.text = prompt_tuning_init_text or ""


class PTuning(VirtualTokensMethod):
    """P-tuning (Liu et al., arXiv 2103.10385), for `model.adapter`: embeddings that an encoder makes.

    `encoder_reparameterization_type` MLP has three layers of width `encoder_hidden_size` (None: that of the model),
    LSTM `encoder_num_layers` bidirectional ones and two layers behind them.
    """

    peft_type = "P_TUNING"

    def __init__(
        self,
        num_virtual_tokens: int,
        encoder_reparameterization_type: str = "MLP",
        encoder_hidden_size: int | None = None,
        encoder_num_layers: int = 2,
        encoder_dropout: float = 0.0,
    ) -> None:
        super().__init__(num_virtual_tokens)
        kind = encoder_reparameterization_type
        if kind not in ENCODERS:
            raise ValueError(f"encoder_reparameterization_type is {kind!r}; allowed are {', '.join(ENCODERS)}")
        if kind == "MLP" and (encoder_num_layers != 2 or encoder_dropout):
            raise ValueError("encoder_num_layers and encoder_dropout are for the LSTM; leave them out")
        self.kind, self.hidden = kind, checked_width(encoder_hidden_size)
        self.num_layers, self.dropout = encoder_num_layers, encoder_dropout

    def parts(self, config: DecoderConfig) -> tuple[int, nn.Module | None]:
        """Return the width of the embedding, and the encoder behind it."""
        d, h = config.embed_dim, self.hidden or config.embed_dim
        if self.kind == "LSTM":
            return d, LSTMEncoder(d, h, self.num_layers, self.dropout)
        return d, nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, d))

    def fields(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the fields of a `PromptEncoderConfig`."""
        fields = {"encoder_reparameterization_type": self.kind, "encoder_num_layers": self.num_layers}
        fields |= {"encoder_hidden_size": self.hidden or config.embed_dim, "encoder_dropout": self.dropout}
        return super().fields(config) | fields


class PrefixTuning(VirtualTokensMethod):
    """Prefix tuning (Li and Liang, arXiv 2101.00190), for `model.adapter`: keys and values of each layer.

    With `prefix_projection` two layers of width `encoder_hidden_size` (None: that of the keys) make them, which trains
    more steadily.
    """

    peft_type, decoder = "PREFIX_TUNING", PrefixDecoder

    def __init__(
        self, num_virtual_tokens: int, prefix_projection: bool = False, encoder_hidden_size: int | None = None
    ) -> None:
        super().__init__(num_virtual_tokens)
        if encoder_hidden_size is not None and not prefix_projection:
            raise ValueError("encoder_hidden_size is for prefix_projection, which is off; leave it out")
        self.prefix_projection, self.hidden = prefix_projection, checked_width(encoder_hidden_size)

    def parts(self, config: DecoderConfig) -> tuple[int, nn.Module | None]:
        """Return the width of the embedding, and the encoder behind it; None: none."""
        dim = config.num_kv_heads * config.head_dim
        width, h = 2 * config.num_layers * dim, self.hidden or dim
        if not self.prefix_projection:
            return width, None
        return dim, nn.Sequential(nn.Linear(dim, h), nn.Tanh(), nn.Linear(h, width))

    def fields(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the fields of a `PrefixTuningConfig`, whose attention heads are those of the keys."""
        dim = config.num_kv_heads * config.head_dim
        fields = {"token_dim": dim, "num_attention_heads": config.num_kv_heads}
        fields |= {"prefix_projection": self.prefix_projection, "encoder_hidden_size": self.hidden or dim}
        return super().fields(config) | fields
