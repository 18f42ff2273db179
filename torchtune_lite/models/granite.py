"""Granite 3 and the dense Granite 4: a Llama with four multipliers (of embeddings, residuals, scores, logits).

Granite 4 shares its architecture with the hybrid models, which have state-space layers or experts and are not served.
"""

from functools import partial
from typing import Any

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.config_json import Fields, HFConfig, hf_windows, sliding_fields
from torchtune_lite.models.families import NO_BIAS, SILU, Family
from torchtune_lite.modules import DecoderConfig


def _multipliers(config: HFConfig) -> Fields:
    return {
        "embed_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "attn_scale": config["attention_multiplier"],  # the scale itself
        "logit_scale": 1 / config["logits_scaling"],
        "attn_dropout": config.get("attention_dropout", 0.0),
    }


def _hf_multipliers(config: DecoderConfig) -> dict[str, Any]:
    return {
        "embedding_multiplier": config.embed_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": config.attn_scale,
        "logits_scaling": 1 / config.logit_scale,
    }


def _granite4(config: HFConfig) -> Fields:
    return _multipliers(config) | sliding_fields(config) | {"intermediate_dim": config["shared_intermediate_size"]}


def _hf_granite4(config: DecoderConfig) -> dict[str, Any]:
    layers = hf_windows(config) | {"num_experts_per_tok": 0, "shared_intermediate_size": config.intermediate_dim}
    return {"layer_types": ["full_attention"] * config.num_layers} | layers | _hf_multipliers(config)


DEFAULTS = {"rms_norm_eps": 1e-6, "embedding_multiplier": 1.0, "residual_multiplier": 1.0}
DEFAULTS |= {"attention_multiplier": 1.0, "logits_scaling": 1.0}

GRANITE = Family(
    name="granite",
    model_type="granite",
    architecture="GraniteForCausalLM",
    scales_inputs=True,
    defaults=DEFAULTS,
    fixed=SILU | NO_BIAS,
    read=_multipliers,
    write=_hf_multipliers,
)
GRANITE4 = Family(
    name="granite4",
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    scales_inputs=True,
    keys={"layers.{}.mlp.w2.weight": "model.layers.{}.shared_mlp.output_linear.weight"},
    fused={"model.layers.{}.shared_mlp.input_linear.weight": ("layers.{}.mlp.w1.weight", "layers.{}.mlp.w3.weight")},
    defaults=DEFAULTS,
    fixed=SILU | NO_BIAS | {"num_local_experts": 0, "position_embedding_type": "rope"},
    read=_granite4,
    write=_hf_granite4,
)

_3 = partial(size, vocab_size=49_155, max_seq_len=131_072, tie_word_embeddings=True, embed_scale=12.0)
_3 = partial(_3, residual_scale=0.22, attn_dropout=0.1)

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "granite3_2b": _3(40, 32, 8, 2048, 8192, rope_base=5e6, attn_scale=1 / 64, logit_scale=1 / 8),
    "granite3_8b": _3(40, 32, 8, 4096, 12_800, rope_base=1e7, attn_scale=1 / 128, logit_scale=1 / 16),
    "granite4_micro_3b": _3(
        *(40, 40, 8, 2560, 8192),
        vocab_size=100_352,
        rope_base=1e7,
        attn_scale=1 / 64,
        logit_scale=1 / 10,
        attn_dropout=0.0,
    ),
}
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("granite", **_3.keywords),
}
globals().update(BUILDERS)
__all__ = [*BUILDERS]
