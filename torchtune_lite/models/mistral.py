"""Mistral 7B (arXiv 2310.06825), Nemo 12B, Small 3 24B; Ministral 8B (2410) and Ministral 3.

Version 0.1 of the 7B sees a window in every layer, later ones do not; Ministral 3 scales rotation and queries for long
texts. From files of Ministral 3, which see images too, the text part is read.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torchtune_lite.data import MistralChatTemplate
from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.config_json import Fields, HFConfig, hf_windows, sliding_fields
from torchtune_lite.models.families import SILU, Family
from torchtune_lite.models.tokenizers import tokenizer_builder
from torchtune_lite.modules import DecoderConfig, RopeScaling


def all_sliding(config: HFConfig) -> Fields:
    """Return the window of a config.json whose layers all slide, if it has one."""
    window = config.get("sliding_window")
    return {"layer_kinds": ("sliding",), "window": window} if window else {}


def hf_window(config: DecoderConfig) -> dict[str, Any]:
    """Write the window of layers that all slide, if there is one: the reverse of `all_sliding`."""
    return {"sliding_window": config.window}


MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={"rms_norm_eps": 1e-6, "sliding_window": 4096},
    fixed=SILU,
    read=all_sliding,
    write=hf_window,
)
MINISTRAL = Family(
    name="ministral",
    model_type="ministral",
    architecture="MinistralForCausalLM",
    defaults={"rms_norm_eps": 1e-6},
    fixed=SILU,
    read=sliding_fields,
    write=hf_windows,
)
MINISTRAL3 = Family(
    name="ministral3",
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    defaults={"rms_norm_eps": 1e-5, "head_dim": 128},
    fixed=SILU | {"sliding_window": None},
)

_mistral = partial(size, max_seq_len=32_768)
_large = partial(size, vocab_size=131_072, head_dim=128)
_yarn = RopeScaling("yarn", factor=16.0, original_len=16_384, query_beta=0.1)
_ministral3 = partial(_large, max_seq_len=262_144, rope_base=1e6, rope_scaling=_yarn)

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "mistral_7b": _mistral(32, 32, 8, 4096, 14_336, vocab_size=32_000, layer_kinds=("sliding",), window=4096),
    "mistral_7b_v0_3": _mistral(32, 32, 8, 4096, 14_336, vocab_size=32_768, rope_base=1e6),
    "mistral_nemo_12b": _large(40, 32, 8, 5120, 14_336, max_seq_len=131_072, rope_base=1e6),
    "mistral_small_24b": _large(40, 32, 8, 5120, 32_768, max_seq_len=32_768, rope_base=1e8),
    "ministral3_3b": _ministral3(26, 32, 8, 3072, 9216, tie_word_embeddings=True),
    "ministral3_8b": _ministral3(34, 32, 8, 4096, 14_336),
    "ministral3_14b": _ministral3(40, 32, 8, 5120, 16_384, rope_base=1e9),
}
BUILDERS = {
    **size_builders(SIZES | {"mistral_reward_7b": replace(SIZES["mistral_7b"], num_classes=1)}),
    **component_builders("mistral"),
    **component_builders("mistral_classifier"),
}
globals().update(BUILDERS)

mistral_tokenizer = tokenizer_builder(MistralChatTemplate, "path")

__all__ = [*BUILDERS, "MistralChatTemplate", "mistral_tokenizer"]
