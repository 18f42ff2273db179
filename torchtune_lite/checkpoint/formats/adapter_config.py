"""adapter_config.json, PEFT's config of an adapter: written of the adapters of a model, and compared with them."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchtune_lite.checkpoint.formats.adapter_embeddings import (
    TOKENS,
    embedding_fields,
    embedding_misfits,
    embedding_problems,
)
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.model_weights import base_parameters
from torchtune_lite.errors import ConfigError
from torchtune_lite.peft import FILES, PeftFile, Projection, TrainedRows, adapter_modules

CONFIG = "adapter_config.json"


def projections(model: nn.Module, layout: HFLayout) -> list[Projection]:
    """Return the adapted projections of `model` as in transformers; trained rows, where there is no other."""
    found: dict[str, Projection] = {}
    modules = adapter_modules(model)
    for name in [name for name, module in modules.items() if not isinstance(module, TrainedRows)] or modules:
        weight = f"{name}.weight"
        parts = layout.parts(layout.their_name(weight)) or {weight: 0}
        path = layout.module_path(weight)
        found[path] = Projection(path, tuple(model.get_submodule(part.removesuffix(".weight")) for part in parts))
    return list(found.values())


def file_of(adapted: list[Projection]) -> PeftFile:
    """Return how adapters, which are of one method, stand in a file."""
    return FILES[adapted[0].adapters[0].peft_type]


def check_adapters(model: nn.Module, layout: HFLayout, merge_into: str) -> None:
    """Raise ConfigError for adapters of `model` that no checkpoint can hold, or none that is merged as asked."""
    if not (adapted := projections(model, layout)):
        return
    file = file_of(adapted)
    file.check(adapted, merge_into)
    if layout.family.scales_inputs and file.makes_embeddings:
        raise ConfigError(
            f"transformers scales what a {layout.family.name} model is given, virtual tokens too, so that PEFT would "
            "compute another function; use PrefixTuning or LoRA"
        )
    if TOKENS not in file.harmless and embedding_fields(model).get(TOKENS):
        raise ConfigError(f"PEFT has no rows of new tokens beside {file.peft_type}; use LoRA, or train_embeddings: all")


def peft_config(model: nn.Module, layout: HFLayout, base: Path | str) -> dict[str, Any]:
    """Describe the adapter of `model` as a config of PEFT's, read off its modules."""
    adapted = projections(model, layout)
    every = {layout.module_path(name) for name in base_parameters(model) if name.endswith(".weight")}
    targets, file = _targets({each.path for each in adapted}, every), file_of(adapted)
    return {
        "peft_type": file.peft_type,
        "task_type": "SEQ_CLS" if layout.config.num_classes else "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).resolve()),
        "inference_mode": True,
        **({"target_modules": targets} if file.on_projections else {}),
        **file.fields(adapted, targets),
        **embedding_fields(model),
    }


def _targets(adapted: set[str], every: set[str]) -> list[str]:
    """Return the last parts of the names, as people write them, or the whole names where those take in too much."""
    short = {path.rpartition(".")[2] for path in adapted}
    taken = {path for path in every if path.rpartition(".")[2] in short}
    return sorted(short if taken == adapted else adapted)


def config_misfits(config: Mapping[str, Any], model: nn.Module, layout: HFLayout) -> list[str]:
    """Return where a config is malformed, or means another function than the adapters of `model`."""
    adapted = projections(model, layout)
    if not adapted:
        return ["the model has no adapter; use its lora_ builder"]
    file = file_of(adapted)
    if (kind := config.get("peft_type")) != file.peft_type:
        return [f"peft_type is {reprlib.repr(kind)}, the model's is {file.peft_type!r}"]
    problems = config_problems(config, layout)
    return problems or [*file.misfits(config, adapted), *embedding_misfits(config, model)]


def config_problems(config: Mapping[str, Any], layout: HFLayout) -> list[str]:
    """Return where a config is malformed, or of what is not served for any model."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in FILES:
        return [f"peft_type is {reprlib.repr(kind)}; known are {', '.join(FILES)}"]
    if layout.config.num_classes and config.get("task_type") == "SEQ_CLS":
        config = {**config, "task_type": None}
    return [*FILES[kind].problems(config), *embedding_problems(config)]
