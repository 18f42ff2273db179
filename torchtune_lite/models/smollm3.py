"""SmolLM3: a Llama of which every fourth layer has no rotation (NoPE, arXiv 2501.18795)."""

from typing import Any

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.config_json import Fields, HFConfig
from torchtune_lite.models.families import NO_BIAS, SILU, Family
from torchtune_lite.modules import DecoderConfig


def _layers(config: HFConfig) -> Fields:
    count, every = config["num_hidden_layers"], config.get("no_rope_layer_interval", 4)
    rotates = config.get("no_rope_layers") or [(i + 1) % every for i in range(count)]  # 1, in spite of the name
    return {"layer_kinds": tuple("full" if each else "nope" for each in rotates)}


def _hf_layers(config: DecoderConfig) -> dict[str, Any]:
    return {"no_rope_layers": [int(kind != "nope") for kind in config.layers]}


SMOLLM3 = Family(
    name="smollm3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    defaults={"tie_word_embeddings": True, "rope_theta": 2e6, "rms_norm_eps": 1e-6},
    fixed=SILU | NO_BIAS | {"use_sliding_window": False},
    read=_layers,
    write=_hf_layers,
)

_shared = {"vocab_size": 128_256, "max_seq_len": 65_536, "norm_eps": 1e-6, "rope_base": 5e6}
_shared |= {"tie_word_embeddings": True, "layer_kinds": ("full", "full", "full", "nope")}

SIZES = {"smollm3_3b": size(36, 16, 4, 2048, 11_008, **_shared)}  # layers, heads, kv heads, width, feed-forward
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("smollm3", **_shared),
}
globals().update(BUILDERS)
__all__ = [*BUILDERS]
