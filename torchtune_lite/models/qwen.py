"""Qwen2 (arXiv 2407.10671), Qwen2.5 (2412.15115) and the dense Qwen3 (2505.09388).

Qwen2 and 2.5 have biases on q, k and v; Qwen3 norms queries and keys per head instead. Under torchtune's names these
are the modules qwen2, qwen2_5 and qwen3. The base and the instruct edition of a size differ in their positions alone.
"""

from functools import partial

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.config_json import Fields, HFConfig, sliding_fields
from torchtune_lite.models.families import BIAS_KEYS, QK_NORM_KEYS, SILU, Family
from torchtune_lite.models.tokenizers import tokenizer_builder

QKV = ("q_proj", "k_proj", "v_proj")


def _layers(config: HFConfig) -> Fields:
    if not config.get("use_sliding_window"):  # as in all releases, which name a window all the same
        return {}
    first = config.get("max_window_layers", 28)
    kinds = tuple("sliding" if i >= first else "full" for i in range(config["num_hidden_layers"]))
    return sliding_fields(config, kinds)


QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=BIAS_KEYS,
    dropped=("layers.{}.attn.output_proj.bias",),
    defaults={"rms_norm_eps": 1e-6},
    fixed=SILU,
    fields={"biased": QKV},
    read=_layers,
)
QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    keys=QK_NORM_KEYS,
    defaults={"rms_norm_eps": 1e-6, "head_dim": 128},
    fixed=SILU | {"attention_bias": False},
    fields={"qk_norm": "head"},
    read=_layers,
)

_2 = partial(size, vocab_size=152_064, norm_eps=1e-6, rope_base=1e6, biased=QKV)
_2_tied = partial(_2, vocab_size=151_936, tie_word_embeddings=True)
_3 = partial(size, vocab_size=151_936, head_dim=128, norm_eps=1e-6, rope_base=1e6, qk_norm="head")
_3_tied = partial(_3, tie_word_embeddings=True)
BASE, INSTRUCT, INSTRUCT_3 = {"max_seq_len": 131_072}, {"max_seq_len": 32_768}, {"max_seq_len": 40_960}

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "qwen2_0_5b": _2_tied(24, 14, 2, 896, 4864, **INSTRUCT),
    "qwen2_1_5b": _2_tied(28, 12, 2, 1536, 8960, **INSTRUCT),
    "qwen2_7b": _2(28, 28, 4, 3584, 18_944, **INSTRUCT),
    "qwen2_5_0_5b": _2_tied(24, 14, 2, 896, 4864, **INSTRUCT),
    "qwen2_5_1_5b_base": _2_tied(28, 12, 2, 1536, 8960, **BASE),
    "qwen2_5_1_5b_instruct": _2_tied(28, 12, 2, 1536, 8960, **INSTRUCT),
    "qwen2_5_3b": _2_tied(36, 16, 2, 2048, 11_008, **INSTRUCT),
    "qwen2_5_7b_base": _2(28, 28, 4, 3584, 18_944, **BASE),
    "qwen2_5_7b_instruct": _2(28, 28, 4, 3584, 18_944, **INSTRUCT),
    "qwen2_5_14b_base": _2(48, 40, 8, 5120, 13_824, **BASE, norm_eps=1e-5),
    "qwen2_5_14b_instruct": _2(48, 40, 8, 5120, 13_824, **INSTRUCT),
    "qwen2_5_32b_base": _2(64, 40, 8, 5120, 27_648, **BASE, norm_eps=1e-5),
    "qwen2_5_32b_instruct": _2(64, 40, 8, 5120, 27_648, **INSTRUCT),
    "qwen2_5_72b_base": _2(80, 64, 8, 8192, 29_568, **BASE, norm_eps=1e-5),
    "qwen2_5_72b_instruct": _2(80, 64, 8, 8192, 29_568, **INSTRUCT),
    "qwen3_0_6b_base": _3_tied(28, 16, 8, 1024, 3072, **INSTRUCT),
    "qwen3_0_6b_instruct": _3_tied(28, 16, 8, 1024, 3072, **INSTRUCT_3),
    "qwen3_1_7b_base": _3_tied(28, 16, 8, 2048, 6144, **INSTRUCT),
    "qwen3_1_7b_instruct": _3_tied(28, 16, 8, 2048, 6144, **INSTRUCT_3),
    "qwen3_4b_base": _3_tied(36, 32, 8, 2560, 9728, **INSTRUCT),
    "qwen3_4b_instruct": _3_tied(36, 32, 8, 2560, 9728, **INSTRUCT_3),
    "qwen3_8b_base": _3(36, 32, 8, 4096, 12_288, **INSTRUCT),
    "qwen3_8b_instruct": _3(36, 32, 8, 4096, 12_288, **INSTRUCT_3),
    "qwen3_14b_base": _3(40, 40, 8, 5120, 17_408, **INSTRUCT),
    "qwen3_14b_instruct": _3(40, 40, 8, 5120, 17_408, **INSTRUCT_3),
    "qwen3_32b": _3(64, 64, 8, 5120, 25_600, **INSTRUCT_3),
}
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("qwen2", **_2.keywords),
    **component_builders("qwen2_5", **_2.keywords),
    **component_builders("qwen3", **_3.keywords),
}
globals().update(BUILDERS)

CHATML = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
"""ChatML without the system turn of Qwen 2's and 2.5's own templates, and without Qwen 3's thoughts."""

TOKENIZERS = dict.fromkeys(
    ("qwen2_tokenizer", "qwen2_5_tokenizer", "qwen3_tokenizer"),
    tokenizer_builder(CHATML, "path", "merges_file", "special_tokens_path"),
)
globals().update(TOKENIZERS)
__all__ = [*BUILDERS, *TOKENIZERS]
