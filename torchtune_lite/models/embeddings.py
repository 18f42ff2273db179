"""The embedding of a model and the tokens that its tokenizer adds: rows for them, and whether they are trained."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torchtune_lite.data import new_tokens
from torchtune_lite.errors import ConfigError
from torchtune_lite.modules import TiedOutput, TransformerDecoder
from torchtune_lite.modules.transformer import TokenEmbedding
from torchtune_lite.peft import TrainedRows, adapter_modules, train_tokens
from torchtune_lite.peft.tokens.trained_tokens import OCCUPIED
from torchtune_lite.peft.tokens.virtual_tokens import VirtualTokensDecoder
from torchtune_lite.utils import counted, get_logger


def fit_embeddings(model: TransformerDecoder, tokenizer: Any) -> None:
    """Give a model without weights rows for the tokens that were added; beside adapters, let these rows be trained.

    They are `data.new_tokens`. One line tells of new rows, which start as the mean of the others and so take little
    from their probabilities (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
    ConfigError where `train_embeddings: new` has nothing to train, and beside virtual tokens.

    Virtual tokens that start as a text get its tokens here.
    """
    wanted = getattr(model, "train_embeddings", None)
    new = new_tokens(tokenizer, model.config.vocab_size, wanted)
    if unknown := [token for token in _rows_of_adapter(model) if token >= tokenizer.vocab_size]:
        get_logger().warning(
            "the adapter has rows of %s that the tokenizer lacks and no text has; name what it was trained with in "
            "tokenizer.add_tokens",
            counted(len(unknown), "token"),
        )
    if isinstance(model, VirtualTokensDecoder):
        if new:
            raise ConfigError("tokenizer.add_tokens: no file has rows of tokens beside virtual tokens; use LoRA")
        model.prompt.read_text(tokenizer)
    if not new:
        if wanted == "new":
            raise ConfigError(
                "model.train_embeddings: new, but the tokenizer has no new tokens; name some in tokenizer.add_tokens"
            )
        return
    try:
        grow_embeddings(model, tokenizer.vocab_size)
        adapters = adapter_modules(model).values()
        has_rows = any(isinstance(adapter, TrainedRows) for adapter in adapters)  # of a saved adapter
        is_whole = model.tok_embeddings.weight.requires_grad  # by `train_embeddings: all`, or a saved adapter
        if not has_rows and not is_whole and (wanted == "new" or adapters):
            speaks = not model.config.tie_word_embeddings and not model.config.num_classes
            train_tokens(model, new, new if speaks else ())
    except ValueError as error:
        raise ConfigError(f"tokenizer.add_tokens: {error}") from error


def _rows_of_adapter(model: TransformerDecoder) -> Iterable[int]:
    """Return the tokens of the rows that a saved adapter has put on a model, or by which it has grown."""
    rows = [each.indices for each in adapter_modules(model).values() if isinstance(each, TrainedRows)]
    size = model.config.vocab_size
    return rows[0] if rows else range(size - model.added_rows, size)


def grow_embeddings(model: TransformerDecoder, vocab_size: int) -> None:
    """Give a model without weights the rows that it lacks of so many, in the embedding and the output.

    One line tells of them. ValueError where the output is not a plain projection.
    """
    size = model.config.vocab_size
    if vocab_size <= size:
        return
    if not isinstance(model.output, TiedOutput) and type(model.output) is not nn.Linear:
        raise ValueError(f"no row can be added to {OCCUPIED}")
    c = model.config = replace(model.config, vocab_size=vocab_size)
    model.added_rows += vocab_size - size
    before = model.tok_embeddings.weight
    with torch.device(before.device):
        model.tok_embeddings = TokenEmbedding(vocab_size, c.embed_dim).requires_grad_(before.requires_grad)
        if c.tie_word_embeddings:
            model.output = TiedOutput(model.tok_embeddings, c.logit_softcap)
        elif not c.num_classes:
            head = nn.Linear(c.embed_dim, vocab_size, bias=False)
            model.output = head.requires_grad_(model.output.weight.requires_grad)
    rows = counted(vocab_size, "row")
    get_logger().info("the embedding grows from %s to %s, the new ones the mean of the others", f"{size:,}", rows)
