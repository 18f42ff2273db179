"""The shape of a model as the keys of a GGUF, both ways.

A GGUF has no numbers of a rotation that is scaled as Llama 3.1's, but the factor of each pair, as a tensor; so has it
those of LongRoPE. Keys are written by their type in Python: int as uint32, float as float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.architectures import Architecture
from torchtune_lite.modules import DecoderConfig, RopeScaling
from torchtune_lite.modules.rope import RotaryPositionalEmbeddings, llama3

Metadata = dict[str, Any]

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
META_LEN = 8192
"""The positions that all of Meta's models were first trained on."""


def write_shape(architecture: Architecture, config: DecoderConfig) -> Metadata:
    """Return the keys of a model's shape."""
    c = config
    values: Metadata = {
        "context_length": architecture.context_length(c),
        "embedding_length": c.embed_dim,
        "block_count": c.num_layers,
        "feed_forward_length": c.intermediate_dim,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": float(c.norm_eps),
        "rope.dimension_count": c.rotary_dim or c.head_dim,
        "rope.freq_base": float(c.rope_base),
    }
    if architecture.has_windows(c.num_layers) and "sliding" in c.layers:
        values["attention.sliding_window"] = c.window
        values["rope.freq_base_swa"] = float(c.local_rope_base or c.rope_base)
    if architecture.softcaps:
        values |= {"attn_logit_softcapping": float(c.attn_softcap), "final_logit_softcapping": float(c.logit_softcap)}
    if architecture.multipliers:
        values |= {
            "attention.scale": float(c.attn_scale or architecture.attn_scale(c)),
            "embedding_scale": float(c.embed_scale),
            "residual_scale": float(c.residual_scale),
            "logit_scale": 1 / c.logit_scale,
        }
    values |= _write_scaling(c.rope_scaling)
    return {f"{architecture.name}.{key}": value for key, value in values.items()}


def _write_scaling(scaling: RopeScaling | None) -> Metadata:
    if scaling is None or scaling.kind == "dynamic":  # which changes nothing within the context
        return {}
    kept = {"rope.scaling.original_context_length": scaling.original_len} if scaling.original_len else {}
    if scaling.kind == "llama3":
        return kept
    if scaling.kind == "longrope":
        return kept | {"rope.scaling.attn_factor": scaling.amplitude}
    values = kept | {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        values |= {
            "rope.scaling.attn_factor": scaling.amplitude / _own_amplitude(scaling.factor),
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    if scaling.query_beta:
        values["attention.temperature_scale"] = float(scaling.query_beta)
    return values


def _own_amplitude(factor: float) -> float:
    """Return the amplitude by which llama.cpp multiplies cosine and sine under YaRN, besides attn_factor."""
    return 1 + 0.1 * math.log(factor)


def rope_factors(config: DecoderConfig) -> dict[str, Tensor]:
    """Return the tensors by which llama.cpp divides the frequencies of each pair."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        rope = RotaryPositionalEmbeddings(config.rotary_dim or config.head_dim, config.rope_base)
        return {FACTORS: _llama3_factors(rope, scaling)}
    if scaling is not None and scaling.kind == "longrope":
        return {LONG: torch.tensor(scaling.long_factors), SHORT: torch.tensor(scaling.short_factors)}
    return {}


def _llama3_factors(rope: RotaryPositionalEmbeddings, scaling: RopeScaling) -> Tensor:
    length = torch.zeros(1, 1)
    plain = rope.frequencies(length)
    return plain / llama3(rope, plain, length, scaling)


def read_shape(architecture: Architecture, metadata: Metadata, tensors: Mapping[str, Weight]) -> dict[str, Any]:
    """Read the fields of `DecoderConfig` that a file decides; CheckpointError for what is not computed here."""
    if "token_embd.weight" not in tensors:
        raise CheckpointError("has no token_embd.weight, so no model is in it")
    found = _Keys(architecture, metadata)
    heads, width = found.get("attention.head_count"), found.get("embedding_length")
    base = found.get("rope.freq_base", 10_000.0)
    fields: dict[str, Any] = {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "num_layers": found.get("block_count"),
        "num_heads": heads,
        "num_kv_heads": found.get("attention.head_count_kv", heads),
        "embed_dim": width,
        "intermediate_dim": found.get("feed_forward_length"),
        "max_seq_len": found.get("context_length"),
        "norm_eps": found.get("attention.layer_norm_rms_epsilon"),
        "head_dim": found.get("attention.key_length", width // heads),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_base": base,
        "rope_scaling": _read_scaling(found, tensors),
    }
    if (rotated := found.get("rope.dimension_count", fields["head_dim"])) != fields["head_dim"]:
        fields["rotary_dim"] = rotated
    if architecture.softcaps:
        fields["attn_softcap"] = found.get("attn_logit_softcapping")
        fields["logit_softcap"] = found.get("final_logit_softcapping")
    if architecture.multipliers:
        fields |= {
            "attn_scale": found.get("attention.scale"),
            "embed_scale": found.get("embedding_scale"),
            "residual_scale": found.get("residual_scale"),
            "logit_scale": 1 / found.get("logit_scale"),
        }
    fields |= _read_layers(found, base, fields["rope_scaling"])
    if architecture.width_scaled is not None:
        fields["attn_scale"] = architecture.attn_scale(DecoderConfig(**fields))
    return fields


class _Keys:
    """The keys of a file's architecture."""

    def __init__(self, architecture: Architecture, metadata: Metadata) -> None:
        self.architecture, self._metadata = architecture, metadata

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, a float as the shortest number that float32 rounds to it; CheckpointError where none is."""
        name = f"{self.architecture.name}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            raise CheckpointError(f"has no key {name}, so the shape of its model is not known")
        if isinstance(value, list):
            raise CheckpointError(f"has a {name} for each layer, and here all have one")
        return float(str(np.float32(value))) if isinstance(value, float) else value


def _read_layers(found: _Keys, base: float, scaling: RopeScaling | None) -> dict[str, Any]:
    architecture, window = found.architecture, found.get("attention.sliding_window", 0)
    num_layers = found.get("block_count")
    patterns = architecture.layer_patterns(num_layers)
    if not window:
        return {"layer_kinds": (patterns[0] * num_layers)[:num_layers]}
    if not architecture.has_windows(num_layers):  # as of Phi 3, whose code has none and whose files name one
        return {"layer_kinds": ("sliding",) * num_layers, "window": window}
    local = found.get("rope.freq_base_swa", architecture.local_rope_base or base)
    fields = {"layer_kinds": (patterns[-1] * num_layers)[:num_layers], "window": window}
    return fields | ({"local_rope_base": local} if local != base or scaling is not None else {})


def _read_scaling(found: _Keys, tensors: Mapping[str, Weight]) -> RopeScaling | None:
    if FACTORS in tensors:
        return _read_llama3(found, tensors[FACTORS].read().float())
    context, kind = found.get("context_length"), found.get("rope.scaling.type", "none")
    original = found.get("rope.scaling.original_context_length", context)
    if LONG in tensors:
        factor = context / original
        own = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        short, long = (tuple(tensors[name].read().float().tolist()) for name in (SHORT, LONG))
        amplitude = found.get("rope.scaling.attn_factor", own)
        return RopeScaling("longrope", factor, original, amplitude=amplitude, short_factors=short, long_factors=long)
    if kind == "none":
        return None
    if kind not in found.architecture.ropes:
        raise CheckpointError(f"scales its rotation as {kind!r}, which is not computed here")
    factor = found.get("rope.scaling.factor")
    if kind == "linear":
        return RopeScaling(kind, factor)
    return RopeScaling(
        kind,
        factor,
        original,
        amplitude=found.get("rope.scaling.attn_factor", 1.0) * _own_amplitude(factor),
        beta_fast=found.get("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=found.get("rope.scaling.yarn_beta_slow", 1.0),
        query_beta=found.get("attention.temperature_scale", 0.0),
    )


def _read_llama3(found: _Keys, factors: Tensor) -> RopeScaling:
    """Find the scaling of which `rope_factors` makes these factors."""
    original = found.get("rope.scaling.original_context_length", META_LEN)
    scaling = RopeScaling("llama3", round(factors.max().item(), 4), original)
    rope = RotaryPositionalEmbeddings(2 * len(factors), found.get("rope.freq_base", 10_000.0))
    if not torch.allclose(_llama3_factors(rope, scaling), factors, rtol=1e-3):
        raise CheckpointError(f"has {FACTORS} that are not those of Llama 3.1, which are not computed here")
    return scaling
