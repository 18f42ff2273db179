"""Adapters of other methods as the plain LoRA of the same function, for programs that know no other."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torchtune_lite.checkpoint.formats.adapter import CONFIG, adapter_tensors
from torchtune_lite.checkpoint.formats.adapter_config import peft_config
from torchtune_lite.checkpoint.formats.files import read_json
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import base_parameters
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.adapter import write_adapter_folder
from torchtune_lite.export.source import Source
from torchtune_lite.peft import FILES, LoRALinear, MergeableAdapter, TrainedRows, adapter_modules

MERGED = "export the merged model, --to hf or gguf"


def write_lora(
    source: Source, folder: Path, base_name: str | None, name: str, *, one_rank: bool
) -> Mapping[str, Weight]:
    """Write the adapter of a source as a LoRA of PEFT's; return the weights of its base with that merged in.

    Each projection has a rank of its own there, in `rank_pattern`; with `one_rank`, all have that of the largest, with
    zeros, and there is no pattern. ConfigError where no LoRA has the function.
    """
    written = with_lora(source, one_rank=one_rank)
    config = peft_config(written.model, source.layout, source.found.base)
    if one_rank and config["rank_pattern"]:
        raise ConfigError("--one-rank: this model has fused matrices, whose adapters have other ranks; leave it out")
    tensors = {key: Weight.of(each) for key, each in adapter_tensors(written.model, source.layout).items()}
    write_adapter_folder(source, folder, tensors, config, base_name, name)
    return written.weights


def with_lora(source: Source, *, one_rank: bool = False) -> Source:
    """Return the source with each of its adapters as a LoRA; a projection whose update is zero has none."""
    model, folder = copy.deepcopy(source.model), source.adapter_folder
    adapters = adapter_modules(model)
    if whole := [name for name, param in base_parameters(model).items() if param.requires_grad]:
        raise ConfigError(f"{folder} has the whole {whole[0]}, which no LoRA has: {MERGED}")
    loras = {name: each.as_lora() if isinstance(each, MergeableAdapter) else None for name, each in adapters.items()}
    if any(isinstance(each, TrainedRows) for each in adapters.values()):
        raise ConfigError(f"{folder} has rows of tokens, which no LoRA has: {MERGED}")
    if None in loras.values():
        config = read_json(folder / CONFIG)
        method, _ = FILES[config["peft_type"]].described(config)
        raise ConfigError(f"{folder} is {method}, whose function no LoRA has: {MERGED}")
    if one_rank:
        rank = max(lora.rank for lora in loras.values() if isinstance(lora, LoRALinear))
        loras = {name: adapter.as_lora(rank) for name, adapter in adapters.items()}
    for name, lora in loras.items():
        model.set_submodule(name, lora)
    return replace(source, model=model)
