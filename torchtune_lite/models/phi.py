"""Phi-3 and 3.5 (arXiv 2404.14219), Phi-4 (2412.08905) and Phi-4-mini (2503.01743).

Their files hold q, k, v in one matrix and w1, w3 in another; here they are apart. Under torchtune's names these are the
modules phi3 and phi4.
"""

from torchtune_lite.models.builders import component_builders, size, size_builders
from torchtune_lite.models.families import SILU, Family
from torchtune_lite.models.mistral import all_sliding, hf_window
from torchtune_lite.models.tokenizers import tokenizer_builder

PHI3 = Family(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fused={
        "model.layers.{}.self_attn.qkv_proj.weight": (
            "layers.{}.attn.q_proj.weight",
            "layers.{}.attn.k_proj.weight",
            "layers.{}.attn.v_proj.weight",
        ),
        "model.layers.{}.mlp.gate_up_proj.weight": ("layers.{}.mlp.w1.weight", "layers.{}.mlp.w3.weight"),
    },
    defaults={"rms_norm_eps": 1e-5},
    fixed=SILU | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_bias": False, "lm_head_bias": False},
    read=all_sliding,
    write=hf_window,
)

_sliding = {"layer_kinds": ("sliding",), "window": 2047}

SIZES = {  # layers, heads, kv heads, width, width of the feed-forward
    "phi3_mini": size(32, 32, 32, 3072, 8192, vocab_size=32_064, max_seq_len=4096, **_sliding),
    "phi3_medium_14b": size(40, 40, 10, 5120, 17_920, vocab_size=32_064, max_seq_len=4096, **_sliding),
    "phi4_14b": size(40, 40, 10, 5120, 17_920, vocab_size=100_352, max_seq_len=16_384, rope_base=250_000.0),
}
BUILDERS = {
    **size_builders(SIZES),
    **component_builders("phi3"),
    **component_builders(
        "phi4_mini",
        **size(32, 24, 8, 3072, 8192, vocab_size=200_064, max_seq_len=131_072, tie_word_embeddings=True).__dict__
        | {"rotary_dim": 96},
    ),
}
globals().update(BUILDERS)

PHI3_CHAT = r"""
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{% else %}{{- '<|endoftext|>' }}{% endif %}"""
PHI4_CHAT = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""
"""The forms of a chat; torchtune begins Phi 3's with BOS, and leaves Phi 4's last end out."""

phi3_mini_tokenizer = tokenizer_builder(PHI3_CHAT, "path", "special_tokens_path")
phi4_tokenizer = tokenizer_builder(PHI4_CHAT, "vocab_path", "merges_path", "special_tokens_path")

__all__ = [*BUILDERS, "phi3_mini_tokenizer", "phi4_tokenizer"]
