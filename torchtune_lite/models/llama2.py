"""Llama 2 (Touvron et al., arXiv 2307.09288): sizes, checkpoint names, builders.

`llama2_7b` is the plain model, `lora_llama2_7b` has adapters on a frozen base, `qlora_llama2_7b` keeps the adapted
projections in NF4. `llama2`, `lora_llama2` and `qlora_llama2` take the sizes as arguments; a recipe fills those left
out from the checkpoint.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torchtune_lite.data import Llama2ChatTemplate as Llama2ChatTemplate
from torchtune_lite.data import ModelTokenizer, PromptTemplateName, load_tokenizer
from torchtune_lite.models.builders import decoder, from_sizes, lora_decoder
from torchtune_lite.models.family import Family
from torchtune_lite.modules import DecoderConfig

LLAMA2 = Family(
    name="LLAMA2",
    hf_architecture="LlamaForCausalLM",
    hf_model_type="llama",
    hf_keys={
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "layers.{}.sa_norm.weight": "model.layers.{}.input_layernorm.weight",
        "layers.{}.attn.q_proj.weight": "model.layers.{}.self_attn.q_proj.weight",
        "layers.{}.attn.k_proj.weight": "model.layers.{}.self_attn.k_proj.weight",
        "layers.{}.attn.v_proj.weight": "model.layers.{}.self_attn.v_proj.weight",
        "layers.{}.attn.output_proj.weight": "model.layers.{}.self_attn.o_proj.weight",
        "layers.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
        "layers.{}.mlp.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
        "layers.{}.mlp.w2.weight": "model.layers.{}.mlp.down_proj.weight",
        "layers.{}.mlp.w3.weight": "model.layers.{}.mlp.up_proj.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    },
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
    ignored_keys=("rotary_emb.inv_freq", "rope.freqs"),
    hf_fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
)

_sizes = partial(DecoderConfig, vocab_size=32_000, max_seq_len=4096)
_7B = _sizes(num_layers=32, num_heads=32, num_kv_heads=32, embed_dim=4096, intermediate_dim=11_008)
_13B = _sizes(num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, intermediate_dim=13_824)
_70B = _sizes(num_layers=80, num_heads=64, num_kv_heads=8, embed_dim=8192, intermediate_dim=28_672)

llama2 = from_sizes(decoder)
lora_llama2 = from_sizes(lora_decoder)
qlora_llama2 = from_sizes(partial(lora_decoder, quantize_base=True))

llama2_7b = partial(decoder, _7B)
llama2_13b = partial(decoder, _13B)
llama2_70b = partial(decoder, _70B)
lora_llama2_7b = partial(lora_decoder, _7B)
lora_llama2_13b = partial(lora_decoder, _13B)
lora_llama2_70b = partial(lora_decoder, _70B)
qlora_llama2_7b = partial(lora_decoder, _7B, quantize_base=True)
qlora_llama2_13b = partial(lora_decoder, _13B, quantize_base=True)
qlora_llama2_70b = partial(lora_decoder, _70B, quantize_base=True)


def llama2_tokenizer(
    path: str | Path,
    max_seq_len: int | None = None,
    prompt_template: PromptTemplateName = "torchtune_lite.models.llama2.Llama2ChatTemplate",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_eos_when_cut: bool = False,
) -> ModelTokenizer:
    """Reads tokenizer.model or tokenizer.json, or a folder with one; the messages are put in Llama 2's `[INST]` form.

    `prompt_template`: another form, "chat_template" for the checkpoint's own, null for the bare messages. The other
    arguments are those of `ModelTokenizer`.
    """
    return load_tokenizer(path, max_seq_len, prompt_template, chat_template_kwargs, add_eos_when_cut)
