"""The config.json of transformers 4 and 5, checked, and its parts that several families share."""

import math
from collections.abc import Mapping
from typing import Any

from torchtune_lite.modules import DecoderConfig, RopeScaling

Fields = dict[str, Any]
HFConfig = Mapping[str, Any]

WHOLE_NUMBERS = frozenset(
    (
        *("vocab_size", "hidden_size", "intermediate_size", "shared_intermediate_size", "head_dim"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "no_rope_layer_interval"),
        *("max_position_embeddings", "original_max_position_embeddings", "sliding_window"),
    )
)
NUMBERS = frozenset(
    (
        *("rms_norm_eps", "rope_theta", "rope_local_base_freq", "partial_rotary_factor", "query_pre_attn_scalar"),
        *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
        *("attn_logit_softcapping", "final_logit_softcapping", "factor", "low_freq_factor", "high_freq_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"),
    )
)
LISTS: dict[str, type | tuple[type, ...]] = {
    "layer_types": str,
    "no_rope_layers": int,
    "short_factor": (int, float),
    "long_factor": (int, float),
}
"""Keys of a config.json and of its rope parameters that hold numbers above 0, and those that hold lists, of what."""


def check_values(config: HFConfig) -> None:
    """Raise ValueError where a number or a list of a config.json is something else, or the rotation has two bases."""
    ropes = [rope for rope in (config.get("rope_scaling"), config.get("rope_parameters")) if isinstance(rope, Mapping)]
    by_kind = [rope for both in ropes for rope in both.values() if isinstance(rope, Mapping)]
    for mapping in (config, *ropes, *by_kind):
        for key, value in mapping.items():
            if value is None:
                continue
            if key in WHOLE_NUMBERS or key in NUMBERS:
                kinds, said = ((int,), "whole number") if key in WHOLE_NUMBERS else ((int, float), "number")
                if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
                    raise ValueError(f"config.json has {key} {value!r}, which is not a {said} above 0")
            elif key in LISTS and not (isinstance(value, list) and all(isinstance(x, LISTS[key]) for x in value)):
                raise ValueError(f"config.json has {key} {value!r}, which is not a list of the right kind")
    bases = [rope["rope_theta"] for rope in (config, *ropes) if rope.get("rope_theta") is not None]
    if any(base != bases[0] for base in bases):
        raise ValueError(
            f"config.json has several rope bases, {', '.join(map(repr, bases))}, and transformers 4 and 5 read "
            "different ones; leave the one that the model was trained with"
        )


def rope_fields(config: HFConfig) -> Fields:
    """Read the rotation: base, share of the head, scaling.

    transformers 4 writes rope_theta and rope_scaling, 5 rope_parameters; where a file has both, 5's count. A mapping by
    kind of layer (Gemma 3, OLMo 3) gives the sliding layers a base of their own.
    """
    rope = rope_parameters(config)
    by_kind = {kind: value for kind, value in rope.items() if isinstance(value, Mapping)}
    local = {}
    if "full_attention" in by_kind:
        rope = by_kind["full_attention"]
        sliding = by_kind.get("sliding_attention", {})
        if (kind := sliding.get("rope_type", "default")) != "default":
            raise ValueError(f"config.json scales the rotation of sliding layers ({kind}), which is not supported")
        local = {"local_rope_base": float(sliding.get("rope_theta", rope.get("rope_theta", 10_000.0)))}
    base = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    fields = {"rope_base": base, "rope_scaling": rope_scaling(rope, config), **local}
    return fields | ({"rotary_dim": int(head_dim * share)} if share != 1 else {})


def rope_parameters(config: HFConfig) -> dict[str, Any]:
    """Merge the spellings of transformers 4 and 5."""
    old, new = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    for rope in (old, new):
        if not isinstance(rope, Mapping):
            raise ValueError(f"config.json has rope parameters {rope!r}, not a mapping")
    return {key: value for rope in (old, new) for key, value in rope.items() if value is not None}


def rope_scaling(rope: HFConfig, config: HFConfig) -> RopeScaling | None:
    """Read the scaling of rope parameters; ValueError for a kind that is not computed here."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "longrope" if kind == "su" or (kind == "yarn" and "short_factor" in rope) else kind
    if kind == "default":
        return None
    positions = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings", positions)
    factor = rope.get("factor") or positions / original
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, float(factor))
    if kind == "llama3":
        return RopeScaling(
            kind, float(factor), original, float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        )
    if kind == "yarn":
        return RopeScaling(
            kind,
            float(factor),
            original,
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            truncate=rope.get("truncate", True),
            amplitude=_yarn_amplitude(rope, factor),
            query_beta=float(rope.get("llama_4_scaling_beta") or 0),
        )
    if kind == "longrope":
        amplitude = rope.get("attention_factor") or (
            math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        )
        short, long = (tuple(map(float, rope[f"{name}_factor"])) for name in ("short", "long"))
        return RopeScaling(kind, float(factor), original, amplitude=amplitude, short_factors=short, long_factors=long)
    raise ValueError(f"config.json has rope type {kind!r}; known are default, linear, dynamic, llama3, yarn, longrope")


def _yarn_amplitude(rope: HFConfig, factor: float) -> float:
    def m(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return m(rope["mscale"]) / m(rope["mscale_all_dim"])
    return m(1)


def sliding_fields(config: HFConfig, kinds: tuple[str, ...] | None = None) -> Fields:
    """Return the kinds of layers of a config.json, and the window of those that slide.

    `kinds` are those of a file that does not list its layers.
    """
    listed = config.get("layer_types")
    names = {"sliding_attention": "sliding", "full_attention": "full", "attention": "full"}
    if listed is not None:
        if unknown := sorted(set(listed) - set(names)):
            raise ValueError(f"config.json has layers of the kinds {', '.join(unknown)}, which are not supported")
        kinds = tuple(names[each] for each in listed)
    if kinds is None or "sliding" not in kinds:
        return {} if kinds is None else {"layer_kinds": kinds}
    return {"layer_kinds": kinds, "window": config["sliding_window"]}


def hf_rope(config: DecoderConfig) -> dict[str, Any]:
    """Describe the rotation as transformers 4 and 5 read it: the reverse of `rope_fields`."""
    scaling, share = config.rope_scaling, {}
    if config.rotary_dim not in (None, config.head_dim):
        share = {"partial_rotary_factor": config.rotary_dim / config.head_dim}
    rope = {"rope_type": "default"} if scaling is None else _hf_scaling(scaling)
    parameters: dict[str, Any] = rope | share | {"rope_theta": config.rope_base}
    more = {}
    if scaling is not None and scaling.kind == "longrope":
        more = {"original_max_position_embeddings": scaling.original_len}  # where transformers looks
    if config.local_rope_base is not None:
        sliding = {"rope_type": "default", "rope_theta": config.local_rope_base}
        parameters = {"full_attention": parameters, "sliding_attention": sliding}
        more = {"rope_local_base_freq": config.local_rope_base}
    old = {"rope_theta": config.rope_base, "rope_scaling": None if scaling is None else rope, **more}
    return old | share | {"rope_parameters": parameters}


def _hf_scaling(scaling: RopeScaling) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.original_len:
        rope["original_max_position_embeddings"] = scaling.original_len
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    if scaling.kind in ("yarn", "longrope"):
        rope["attention_factor"] = scaling.amplitude
    if scaling.query_beta:
        rope["llama_4_scaling_beta"] = scaling.query_beta
    if scaling.kind == "longrope":
        rope |= {"short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    return rope


def hf_windows(config: DecoderConfig) -> dict[str, Any]:
    """Describe layers of which some see a window: the reverse of `sliding_fields`."""
    if config.window is None:
        return {"sliding_window": None}
    kinds = ["sliding_attention" if kind == "sliding" else "full_attention" for kind in config.layers]
    return {"layer_types": kinds, "sliding_window": config.window}
