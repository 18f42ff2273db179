"""LoRA and DoRA adapters in the layout of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT names a tensor `base_model.model.<HF module>.lora_A.weight`, where `<HF module>` is the projection's name in
transformers.
"""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchtune_lite.checkpoint.files import read_files, read_json, write_json
from torchtune_lite.checkpoint.model_weights import base_parameters, check_weights, some
from torchtune_lite.checkpoint.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import Family
from torchtune_lite.peft import DoRALinear, LoRALinear, adapter_modules

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_NAMES = {
    "lora_a.weight": "lora_A.weight",
    "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}


def hf_adapter_modules(model: nn.Module, family: Family) -> dict[str, LoRALinear]:
    """Finds the adapted projections of `model` by their names in transformers."""
    return {hf_module(name, family): module for name, module in adapter_modules(model).items()}


def hf_module(name: str, family: Family) -> str:
    """Gives the name in transformers of our module `name`, which has a weight."""
    return family.to_hf(f"{name}.weight").removesuffix(".weight")


def adapter_params(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """Gives the live adapter parameters of `model` by PEFT's names."""
    return {
        f"base_model.model.{path}.{PEFT_NAMES[param]}": module.get_parameter(param)
        for path, module in hf_adapter_modules(model, family).items()
        for param in module.adapter_params()
    }


def write_adapter(folder: Path, model: nn.Module, family: Family, base: Path | str) -> None:
    """Writes the adapter of `model` to a new folder, in its own dtype; `base` is the folder of its base model."""
    folder.mkdir()
    weights = {name: Weight.of(param) for name, param in adapter_params(model, family).items()}
    write_safetensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, adapter_config(model, family, base))


def adapter_config(model: nn.Module, family: Family, base: Path | str) -> dict[str, Any]:
    """Describes the adapter of `model` as PEFT's `LoraConfig`, read off its modules.

    Rank and alpha are the most frequent ones; a module that differs stands in `rank_pattern` or `alpha_pattern`.
    """
    modules = hf_adapter_modules(model, family)
    rank = Counter(module.rank for module in modules.values()).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules.values()).most_common(1)[0][0]
    every = {hf_module(name.removesuffix(".weight"), family) for name in base_parameters(model)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).resolve()),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(module.dropout.p for module in modules.values()),
        "target_modules": _targets(set(modules), every),
        "rank_pattern": {path: module.rank for path, module in modules.items() if module.rank != rank},
        "alpha_pattern": {path: module.alpha for path, module in modules.items() if module.alpha != alpha},
        "use_rslora": False,
        "use_dora": any(isinstance(module, DoRALinear) for module in modules.values()),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _targets(adapted: set[str], every: set[str]) -> list[str]:
    """Gives the last parts of the names, as people write them, or the whole names where those take in too much."""
    short = {path.rpartition(".")[2] for path in adapted}
    taken = {path for path in every if path.rpartition(".")[2] in short}
    return sorted(short if taken == adapted else adapted)


@torch.no_grad()
def load_adapter(model: nn.Module, path: Path | str, family: Family) -> None:
    """Loads a PEFT adapter, its folder or a file in it, into the adapters of `model`.

    CheckpointError lists whatever does not fit, in weights or in adapter_config.json; the model is then as it was.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    weights = _fitting_weights(folder, model, family)
    for name, param in adapter_params(model, family).items():
        param.copy_(weights[name].read())


@torch.no_grad()
def check_adapter(folder: Path, model: nn.Module, family: Family) -> None:
    """Raises CheckpointError where the adapter in `folder` is not, value by value, that of `model`."""
    weights = _fitting_weights(folder, model, family)
    params = adapter_params(model, family)
    if wrong := [name for name, param in params.items() if not torch.equal(weights[name].read(), param.cpu())]:
        raise CheckpointError(f"adapter {folder}: {len(wrong)} weights have other values ({some(wrong)})")


def _fitting_weights(folder: Path, model: nn.Module, family: Family) -> dict[str, Weight]:
    """Lists the weights of an adapter, whose config and shapes are those of `model`."""
    config = read_json(folder / CONFIG)
    if problems := _config_misfits(config, model, family):
        raise CheckpointError(f"adapter {folder} does not fit: {'; '.join(problems)}")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"adapter {folder}: has no {WEIGHTS}")
    weights = read_files([folder / WEIGHTS])[WEIGHTS]
    check_weights(adapter_params(model, family), weights, f"adapter {folder}")
    return weights


def _config_misfits(config: dict[str, Any], model: nn.Module, family: Family) -> list[str]:
    """Says where a `LoraConfig` means another function than the adapters of `model`; the weights tell the targets."""
    modules = hf_adapter_modules(model, family)
    if not modules:
        return ["the model has no adapter; use its lora_ builder"]
    if (kind := config.get("peft_type")) != "LORA":
        return [f"peft_type is {kind}, the model's is LORA"]
    problems = [
        f"{key} is {value}, which is not supported"
        for key, off in (("bias", "none"), ("modules_to_save", None), ("fan_in_fan_out", False))
        if (value := config.get(key) or off) != off
    ]
    use_dora = any(isinstance(module, DoRALinear) for module in modules.values())
    if bool(config.get("use_dora")) != use_dora:
        problems.append(f"use_dora is {bool(config.get('use_dora'))}, the model's is {use_dora}")
    seen = set()
    for path, module in modules.items():
        rank = _of_module(config.get("rank_pattern"), path, config.get("r"))
        alpha = _of_module(config.get("alpha_pattern"), path, config.get("lora_alpha"))
        if config.get("use_rslora") and rank:  # scales by alpha / sqrt(r)
            alpha *= math.sqrt(rank)
        if rank != module.rank:
            seen.add(f"r is {rank}, the model's is {module.rank}")
        elif alpha != module.alpha:
            seen.add(f"lora_alpha is {alpha}, the model's is {module.alpha}")
    return problems + sorted(seen)


def _of_module(pattern: dict[str, Any] | None, path: str, default: Any) -> Any:
    """Looks `path` up in PEFT's `rank_pattern` or `alpha_pattern`: regular expressions for the end of a name."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", path):
            return value
    return default
