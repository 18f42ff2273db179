"""adapter_config.json, PEFT's `LoraConfig`: written of the adapters of a model, and compared with them."""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.model_weights import base_parameters
from torchtune_lite.errors import ConfigError
from torchtune_lite.peft import Adapter, LoRALinear, adapter_modules

CONFIG = "adapter_config.json"
OFF = (None, "", [], {})
COMPARED = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the weights tell where they are
    *("lora_dropout", "megatron_core", "ensure_weight_tying"),
    *("qalora_group_size",),  # of use_qalora
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # of init_lora_weights
}
ALLOWED = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
"""Values besides those in `OFF` and false. Any other field must be off: those of a `LoraConfig` that change the
function, such as `modules_to_save`, `lora_bias` or `trainable_token_indices`, and whatever a later PEFT adds."""

OTHER_BASE = (
    "which changed the base weights; save it in PEFT with path_initial_model_for_weight_conversion, for an adapter of "
    "the base as it is"
)
MERGE = "merge it in PEFT (merge_and_unload) and load the merged model"


@dataclass(frozen=True)
class Projection:
    """An adapted projection of transformers' model: its path there, and what of ours it consists of, row below row.

    That is one adapter, or in a fused matrix several, of which some may be plain projections.
    """

    path: str
    parts: tuple[nn.Module, ...]

    @property
    def adapters(self) -> list[LoRALinear]:
        """The parts that carry an adapter."""
        return [part for part in self.parts if isinstance(part, Adapter)]

    @property
    def rank(self) -> int:
        """The rank of all together, where one matrix B has theirs as blocks."""
        return sum(part.update_rank for part in self.adapters)

    @property
    def alpha(self) -> float:
        """The alpha with which the rank of all together gives the scaling of each."""
        one, *others = self.adapters
        if others and one.use_rslora:
            return one.scaling * math.sqrt(self.rank)
        return sum(part.update_alpha for part in self.adapters)


def projections(model: nn.Module, layout: HFLayout) -> list[Projection]:
    """Return the adapted projections of `model` as transformers has them."""
    found: dict[str, Projection] = {}
    for name in adapter_modules(model):
        weight = f"{name}.weight"
        parts = layout.parts(layout.their_name(weight)) or {weight: 0}
        path = layout.module_path(weight)
        found[path] = Projection(path, tuple(model.get_submodule(part.removesuffix(".weight")) for part in parts))
    return list(found.values())


def check_adapters(model: nn.Module, layout: HFLayout, merge_into: str) -> None:
    """Raise ConfigError for adapters of `model` that no checkpoint can hold, or none that is merged as asked."""
    for each in projections(model, layout):
        if merge_into == "original" and any(part.init_lora_weights == "loftq" for part in each.adapters):
            raise ConfigError(
                "checkpointer.merge_into: original adds what init_lora_weights: loftq makes up for to a base that has "
                "lost nothing; set merge_into: quantized"
            )
        if not all(math.isclose(part.scaling, each.adapters[0].scaling) for part in each.adapters):
            raise ConfigError(
                f"{each.path} is one matrix in the checkpoint, and the adapters of its parts differ in their scale; "
                "make rank_pattern and alpha_pattern agree on them"
            )


def adapter_config(model: nn.Module, layout: HFLayout, base: Path | str) -> dict[str, Any]:
    """Describe the adapter of `model` as a `LoraConfig`, read off its modules.

    Rank and alpha are the most frequent ones; a module that differs stands in `rank_pattern` or `alpha_pattern`.
    """
    adapted = projections(model, layout)
    adapters = [adapter for projection in adapted for adapter in projection.adapters]
    rank = Counter(each.rank for each in adapted).most_common(1)[0][0]
    alpha = Counter(each.alpha for each in adapted).most_common(1)[0][0]
    every = {layout.module_path(name) for name in base_parameters(model) if name.endswith(".weight")}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if layout.config.num_classes else "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).resolve()),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(adapter.dropout.p for adapter in adapters),
        "target_modules": _targets({each.path for each in adapted}, every),
        "rank_pattern": {each.path: each.rank for each in adapted if each.rank != rank},
        "alpha_pattern": {each.path: each.alpha for each in adapted if each.alpha != alpha},
        "use_rslora": adapters[0].use_rslora,
        "use_dora": any(adapter.use_dora for adapter in adapters),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _targets(adapted: set[str], every: set[str]) -> list[str]:
    """Return the last parts of the names, as people write them, or the whole names where those take in too much."""
    short = {path.rpartition(".")[2] for path in adapted}
    taken = {path for path in every if path.rpartition(".")[2] in short}
    return sorted(short if taken == adapted else adapted)


def config_misfits(config: Mapping[str, Any], model: nn.Module, layout: HFLayout) -> list[str]:
    """Return where a `LoraConfig` is malformed, or means another function than the adapters of `model`."""
    adapted = projections(model, layout)
    if not adapted:
        return ["the model has no adapter; use its lora_ builder"]
    if problems := config_problems(config, layout):
        return problems
    use_dora = any(adapter.use_dora for each in adapted for adapter in each.adapters)
    if bool(config.get("use_dora")) != use_dora:
        problems.append(f"use_dora is {bool(config.get('use_dora'))}, the model's is {use_dora}")
    seen = set()
    for each in adapted:
        rank = _of_module(config.get("rank_pattern"), each.path, config["r"])
        alpha = scaled_alpha(config, each.path, rank)
        one = each.adapters[0]  # of a fused matrix: its parts may have the rank together, or each
        ranks = {each.rank, one.update_rank}
        if rank not in ranks:
            seen.add(f"r is {rank}, the model's is {' or '.join(map(str, sorted(ranks)))}")
        elif not math.isclose(alpha / rank, one.scaling, rel_tol=1e-6):
            by = " by use_rslora" if config.get("use_rslora") else ""
            seen.add(f"lora_alpha is {alpha:.9g}{by}, the model's is {one.scaling * rank:.9g}")
    return problems + sorted(seen)


def config_problems(config: Mapping[str, Any], layout: HFLayout) -> list[str]:
    """Return where a `LoraConfig` is malformed, or of what is not served for any model."""
    if (kind := config.get("peft_type")) != "LORA":
        return [f"peft_type is {reprlib.repr(kind)}, the model's is 'LORA'"]
    if layout.config.num_classes and config.get("task_type") == "SEQ_CLS":
        config = {**config, "task_type": None}
    return [*_unsupported(config), *_malformed(config)]


def scaled_alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """Return the alpha by which, over its rank, an adapter of PEFT's on the projection `path` is scaled."""
    alpha = _of_module(config.get("alpha_pattern"), path, config["lora_alpha"])
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """Name the fields whose values change what PEFT computes, and are not served, and say what to do."""
    changing = {
        key: reprlib.repr(value)
        for key, value in config.items()
        if key not in COMPARED | HARMLESS and value is not False and value not in (*OFF, *ALLOWED.get(key, ()))
    }
    init = changing.pop("init_lora_weights", None)
    problems = [f"init_lora_weights is {init}, {OTHER_BASE}"] if init else []
    if changing:
        fields = ", ".join(f"{key} is {value}" for key, value in changing.items())
        problems.append(f"{fields}, which is not served; {MERGE}")
    return problems


def _malformed(config: Mapping[str, Any]) -> list[str]:
    """Name the fields whose values are not of their type."""
    rank, number, switch = "a whole number above 0", "a number", "true or false"
    kinds = {"r": (rank, _is_rank), "lora_alpha": (number, _is_number)}
    kinds |= dict.fromkeys(("use_rslora", "use_dora"), (switch, _is_switch))
    problems = [
        f"{key} is {reprlib.repr(config.get(key))}, not {kind}"
        for key, (kind, is_of_kind) in kinds.items()
        if not is_of_kind(config.get(key))
    ]
    for key, (kind, is_of_kind) in {"rank_pattern": kinds["r"], "alpha_pattern": kinds["lora_alpha"]}.items():
        pattern = {} if config.get(key) is None else config[key]
        if not isinstance(pattern, dict):
            problems.append(f"{key} is {reprlib.repr(pattern)}, not a mapping")
            continue
        problems += [
            f"{key} has {reprlib.repr(name)}: {reprlib.repr(value)}, not an expression for names and {kind}"
            for name, value in pattern.items()
            if not (is_of_kind(value) and _is_expression(name))
        ]
    return problems


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # nor NaN


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_expression(text: str) -> bool:
    try:
        re.compile(_named_by(text))
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _of_module(pattern: dict[str, Any] | None, path: str, default: Any) -> Any:
    """Look `path` up in PEFT's `rank_pattern` or `alpha_pattern`: the first key that names it."""
    return next((value for key, value in (pattern or {}).items() if re.match(_named_by(key), path)), default)


def _named_by(key: str) -> str:
    """Return the expression that PEFT makes of a key: one for the end of a name, or with ^ for all of it."""
    return rf"(.*\.)?({key})$"
