"""One line on what a checkpoint and a tokenizer turned out to be: family, size, template."""

from typing import Any

import torch

from torchtune_lite import config
from torchtune_lite.checkpoint.building import build_decoder
from torchtune_lite.data import check_vocabulary
from torchtune_lite.models import fit_embeddings, from_checkpoint
from torchtune_lite.utils import counted


def described(family: str, decoder_args: dict[str, Any], tokenizer: Any) -> str:
    """Say which model and which template were found, as `llama, 134.5M parameters (30 layers of 576); template …`.

    And the dropout in its attention, which its config.json may ask for (Granite's do).
    """
    with torch.device("meta"):
        model = from_checkpoint(**decoder_args)
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{count / 1e9:.2f}B parameters" if count >= 1e9 else f"{count / 1e6:.1f}M parameters"
    layers = f"{counted(model.config.num_layers, 'layer')} of {model.config.embed_dim}"
    if dropout := model.config.attn_dropout:
        layers += f", with {dropout:.0%} dropout in attention"
    template = getattr(tokenizer, "prompt_template", None)
    name = getattr(template, "name", type(template).__name__) if template is not None else "none"
    return f"model: {family}, {size} ({layers}); template: {name}"


def found(cfg: Any) -> str:
    """Return that line for settings whose model comes from the checkpoint; "" for those that name one.

    Builds the checkpointer and the tokenizer, and the model's shapes; reads no weight. Raises what a run would.
    """
    model = getattr(cfg, "model", None)
    if not isinstance(model, dict) or config.find(model["_component_"]) is not from_checkpoint:
        return ""
    checkpointer = config.instantiate(cfg.checkpointer)
    if getattr(cfg, "dtype", None) == "fp16":
        checkpointer.check_fp16()
    tokenizer = config.instantiate(cfg.tokenizer, defaults=checkpointer.tokenizer_args)
    built = build_decoder(checkpointer, model)
    fit_embeddings(built, tokenizer)
    checkpointer.check_adapters(built)
    check_vocabulary(tokenizer, built.config.vocab_size, checkpointer.checkpoint_dir)
    return described(checkpointer.family.name, checkpointer.decoder_args, tokenizer)
