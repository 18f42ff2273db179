"""Seed-OSS 36B: a Llama with biases on q, k and v."""

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.families import BIAS_KEYS, SILU, Family

QKV = ("q_proj", "k_proj", "v_proj")

SEED_OSS = Family(
    name="seed_oss",
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    keys=BIAS_KEYS,
    dropped=("layers.{}.attn.output_proj.bias",),
    defaults={"rms_norm_eps": 1e-6, "head_dim": 128},
    fixed=SILU | {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "residual_dropout": 0.0},
    fields={"biased": QKV},
)

_shared = {"vocab_size": 155_136, "max_seq_len": 524_288, "norm_eps": 1e-6, "rope_base": 1e7, "biased": QKV}

SIZES = {"seed_oss_36b": size(64, 80, 8, 5120, 27_648, head_dim=128, **_shared)}
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("seed_oss", **_shared),
}
globals().update(BUILDERS)
__all__ = [*BUILDERS]
