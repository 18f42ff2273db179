"""Gemma (arXiv 2403.08295), Gemma 2 (2408.00118) and Gemma 3 (2503.19786), text only.

Norms multiply by 1 + weight, embeddings by √d; Gemma 2 caps scores and logits and norms what attention and feed-forward
give; Gemma 3 norms queries and keys instead of capping. From files that see images too the text part is read.
"""

import math
from functools import partial
from typing import Any

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.config_json import Fields, HFConfig, hf_windows, sliding_fields
from torchtune_lite.models.families import POST_NORM_KEYS, QK_NORM_KEYS, Family
from torchtune_lite.models.tokenizers import tokenizer_builder
from torchtune_lite.modules import DecoderConfig, RopeScaling

DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "rms_norm_eps": 1e-6}
FIELDS = {"activation": "gelu_tanh", "norm_offset": 1.0}
FIXED = {"attention_bias": False, "use_bidirectional_attention": (False, None)}
FOUR_NORMS = {"layers.{}.mlp_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight", **POST_NORM_KEYS}


def _gemma(config: HFConfig) -> Fields:
    return {"embed_scale": math.sqrt(config["hidden_size"])}


def _gemma2(config: HFConfig) -> Fields:
    kinds = tuple("full" if i % 2 else "sliding" for i in range(config["num_hidden_layers"]))
    return (
        _gemma(config)
        | sliding_fields(config, kinds)
        | {
            "attn_scale": config["query_pre_attn_scalar"] ** -0.5,
            "attn_softcap": config.get("attn_logit_softcapping"),
            "logit_softcap": config.get("final_logit_softcapping"),
        }
    )


def _gemma3(config: HFConfig) -> Fields:
    every = config.get("sliding_window_pattern", 6)
    kinds = tuple("sliding" if (i + 1) % every else "full" for i in range(config["num_hidden_layers"]))
    local = {} if config.get("rope_parameters") else {"local_rope_base": float(config["rope_local_base_freq"])}
    scale = {"attn_scale": config["query_pre_attn_scalar"] ** -0.5}
    return _gemma(config) | sliding_fields(config, kinds) | local | scale


def _hf_gemma2(config: DecoderConfig) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": config.attn_softcap, "final_logit_softcapping": config.logit_softcap}
    return hf_windows(config) | caps | {"query_pre_attn_scalar": round(config.attn_scale**-2)}


GEMMA = Family(
    name="gemma",
    model_type="gemma",
    architecture="GemmaForCausalLM",
    defaults=DEFAULTS,
    fixed=FIXED | {"hidden_activation": ("gelu_pytorch_tanh", None)},
    fields=FIELDS,
    read=_gemma,
    fits_fp16=False,
)
GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    keys=FOUR_NORMS,
    defaults=DEFAULTS
    | {"query_pre_attn_scalar": 256, "sliding_window": 4096}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    fixed=FIXED | {"hidden_activation": "gelu_pytorch_tanh"},
    fields=FIELDS | {"post_norm": True},
    read=_gemma2,
    write=_hf_gemma2,
    fits_fp16=False,
)
GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    keys=FOUR_NORMS | QK_NORM_KEYS,
    defaults=DEFAULTS
    | {"query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208, "max_position_embeddings": 131_072},
    fixed=FIXED
    | {"hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None},
    fields=FIELDS | {"post_norm": True, "qk_norm": "head"},
    read=_gemma3,
    write=_hf_gemma2,
    fits_fp16=False,
)


def _size(
    num_layers: int, num_heads: int, num_kv_heads: int, embed_dim: int, intermediate_dim: int, **fields: object
) -> DecoderConfig:
    shared = {"tie_word_embeddings": True, "norm_eps": 1e-6, "head_dim": 256, "embed_scale": math.sqrt(embed_dim)}
    return size(num_layers, num_heads, num_kv_heads, embed_dim, intermediate_dim, **shared | FIELDS | fields)


_1 = partial(_size, vocab_size=256_000, max_seq_len=8192)
_2 = partial(_1, post_norm=True, layer_kinds=("sliding", "full"), window=4096, attn_softcap=50.0, logit_softcap=30.0)
_layers = {"layer_kinds": (*["sliding"] * 5, "full"), "rope_base": 1e6, "local_rope_base": 1e4}
_3 = partial(_size, post_norm=True, qk_norm="head", **_layers, window=512, vocab_size=262_144, max_seq_len=32_768)
_3_large = partial(
    _3, window=1024, vocab_size=262_208, max_seq_len=131_072, rope_scaling=RopeScaling("linear", factor=8.0)
)

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "gemma_2b": _1(18, 8, 1, 2048, 16_384),
    "gemma_7b": _1(28, 16, 16, 3072, 24_576),
    "gemma2_2b": _2(26, 8, 4, 2304, 9216),
    "gemma2_9b": _2(42, 16, 8, 3584, 14_336),
    "gemma2_27b": _2(46, 32, 16, 4608, 36_864, head_dim=128, attn_scale=144**-0.5),
    "gemma3_270m": _3(18, 4, 1, 640, 2048),
    "gemma3_1b": _3(26, 4, 1, 1152, 6912),
    "gemma3_4b": _3_large(34, 8, 4, 2560, 10_240),
    "gemma3_12b": _3_large(48, 16, 8, 3840, 15_360),
    "gemma3_27b": _3_large(62, 32, 16, 5376, 21_504, head_dim=128, attn_scale=168**-0.5),
}
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("gemma", **_1.keywords, **FIELDS, tie_word_embeddings=True),
    **component_builders("gemma2", **_2.keywords, **FIELDS, tie_word_embeddings=True),
    **component_builders("gemma3", **_3.keywords, **FIELDS, tie_word_embeddings=True),
}
globals().update(BUILDERS)

GEMMA_CHAT = r"""
{{- '<bos>' }}
{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for message in messages if message.role != 'system' %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- (system if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""
"""Gemma 3's form, in which a system prompt opens the first question; torchtune writes no turns at all."""

gemma_tokenizer = gemma2_tokenizer = tokenizer_builder(GEMMA_CHAT, "path")

__all__ = [*BUILDERS, "gemma2_tokenizer", "gemma_tokenizer"]
