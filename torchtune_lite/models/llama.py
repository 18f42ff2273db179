"""Llama 2 (arXiv 2307.09288), Code Llama (2308.12950), Llama 3 to 3.3 (2407.21783), SmolLM2 (2502.02737), TinyLlama.

One architecture: the sizes differ, and from Llama 3.1 on the rotation is scaled. Under torchtune's names these are the
modules llama2, code_llama2, llama3, llama3_1, llama3_2, llama3_3 and smol.
"""

from dataclasses import replace
from functools import partial

from torchtune_lite.data import Llama2ChatTemplate
from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.families import NO_BIAS, SILU, Family
from torchtune_lite.models.tokenizers import tokenizer_builder
from torchtune_lite.modules import RopeScaling

LLAMA = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    meta_keys={
        "tok_embeddings.weight": "tok_embeddings.weight",
        "layers.{}.sa_norm.weight": "layers.{}.attention_norm.weight",
        "layers.{}.attn.q_proj.weight": "layers.{}.attention.wq.weight",
        "layers.{}.attn.k_proj.weight": "layers.{}.attention.wk.weight",
        "layers.{}.attn.v_proj.weight": "layers.{}.attention.wv.weight",
        "layers.{}.attn.output_proj.weight": "layers.{}.attention.wo.weight",
        "layers.{}.mlp_norm.weight": "layers.{}.ffn_norm.weight",
        "layers.{}.mlp.w1.weight": "layers.{}.feed_forward.w1.weight",
        "layers.{}.mlp.w2.weight": "layers.{}.feed_forward.w2.weight",
        "layers.{}.mlp.w3.weight": "layers.{}.feed_forward.w3.weight",
        "norm.weight": "norm.weight",
        "output.weight": "output.weight",
    },
    defaults={"rms_norm_eps": 1e-6},
    fixed=SILU | NO_BIAS,
)

_2 = partial(size, vocab_size=32_000, max_seq_len=4096)
_code = partial(_2, vocab_size=32_016, max_seq_len=16_384, rope_base=1e6)
_3 = partial(size, vocab_size=128_256, max_seq_len=8192, rope_base=500_000.0)
_3_1 = partial(_3, max_seq_len=131_072, rope_scaling=RopeScaling("llama3", factor=8.0, original_len=8192))
_3_2 = partial(_3_1, rope_scaling=RopeScaling("llama3", factor=32.0, original_len=8192), tie_word_embeddings=True)
_smol = partial(size, vocab_size=49_152, max_seq_len=8192, rope_base=100_000.0, tie_word_embeddings=True)

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "llama2_7b": _2(32, 32, 32, 4096, 11_008),
    "llama2_13b": _2(40, 40, 40, 5120, 13_824),
    "llama2_70b": _2(80, 64, 8, 8192, 28_672),
    "tinyllama_1_1b": _2(22, 32, 4, 2048, 5632, max_seq_len=2048),
    "code_llama2_7b": _code(32, 32, 32, 4096, 11_008),
    "code_llama2_13b": _code(40, 40, 40, 5120, 13_824),
    "code_llama2_34b": _code(48, 64, 8, 8192, 22_016, vocab_size=32_000),
    "code_llama2_70b": _code(80, 64, 8, 8192, 28_672),
    "llama3_8b": _3(32, 32, 8, 4096, 14_336),
    "llama3_70b": _3(80, 64, 8, 8192, 28_672),
    "llama3_1_8b": _3_1(32, 32, 8, 4096, 14_336),
    "llama3_1_70b": _3_1(80, 64, 8, 8192, 28_672),
    "llama3_1_405b": _3_1(126, 128, 8, 16_384, 53_248),
    "llama3_2_1b": _3_2(16, 32, 8, 2048, 8192),
    "llama3_2_3b": _3_2(28, 24, 8, 3072, 8192),
    "llama3_3_70b": _3_1(80, 64, 8, 8192, 28_672),
    "smollm2_135m": _smol(30, 9, 3, 576, 1536),
    "smollm2_360m": _smol(32, 15, 5, 960, 2560),
    "smollm2_1_7b": _smol(24, 32, 32, 2048, 8192, rope_base=130_000.0),
}
BUILDERS = {
    **size_builders(SIZES | {"llama2_reward_7b": replace(SIZES["llama2_7b"], num_classes=1)}),
    **component_builders("llama2"),
    **component_builders("llama2_classifier"),
    **component_builders("llama3", **_3.keywords),
    **component_builders("llama3_1", **_3_1.keywords),
    **component_builders("llama3_2", **_3_2.keywords),
    **component_builders("smollm2", **_smol.keywords),
}
globals().update(BUILDERS)


LLAMA3_CHAT = r"""
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
"""Llama 3's form; from 3.1 on the models' own templates begin it with a system turn that tells the date."""

llama2_tokenizer = tokenizer_builder(
    Llama2ChatTemplate, "path", prompt_template="torchtune_lite.models.llama2.Llama2ChatTemplate"
)
llama3_tokenizer = tokenizer_builder(LLAMA3_CHAT, "path", "special_tokens_path")

__all__ = [*BUILDERS, "Llama2ChatTemplate", "llama2_tokenizer", "llama3_tokenizer"]
