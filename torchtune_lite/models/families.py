"""The form of each architecture's checkpoints: their names, their config.json, and their default values.

A `Family` is a table. The functions here read any of them: names between ours and Hugging Face's, and a config.json of
transformers 4 or 5 as the fields of `DecoderConfig`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torchtune_lite.models.config_json import Fields, HFConfig, check_values, hf_rope, rope_fields
from torchtune_lite.modules import DecoderConfig

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
IGNORED = ("rotary_emb.inv_freq", "rope.freqs", ".attention.bias", ".attention.masked_bias")
"""The ends of names that stand in checkpoints and carry nothing."""

HF_KEYS = {
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
}
"""Our parameter names and those of a Llama in transformers; `{}` is the number of the layer."""

QK_NORM_KEYS = {f"layers.{{}}.attn.{x}_norm.weight": f"model.layers.{{}}.self_attn.{x}_norm.weight" for x in "qk"}
BIAS_KEYS = {
    f"layers.{{}}.attn.{ours}.bias": f"model.layers.{{}}.self_attn.{theirs}.bias"
    for ours, theirs in (("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("output_proj", "o_proj"))
}
POST_NORM_KEYS = {
    "layers.{}.sa_post_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.mlp_post_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}

MOE = "mixtral qwen2_moe qwen3_moe gpt_oss llama4_text deepseek_v3 olmoe granitemoe phimoe glm4_moe"
STATE = "mamba mamba2 qwen3_next qwen3_5_text bamba jamba falcon_h1 nemotron_h"
MEAN = "gpt2 gpt_neox opt phi falcon bloom stablelm starcoder2 cohere cohere2"
NOT_SERVED = {
    **dict.fromkeys(MOE.split(), "it has experts"),
    **dict.fromkeys(STATE.split(), "it has recurrent layers (linear attention or state space)"),
    **dict.fromkeys(("gemma3n_text", "gemma4_text"), "it has embeddings in each layer"),
    **dict.fromkeys(MEAN.split(), "its norms subtract the mean (LayerNorm)"),
    **dict.fromkeys(("glm", "glm4", "ernie4_5"), "it rotates neighbouring dimensions in pairs"),
    "lfm2": "it has convolutions",
}
"""Architectures by their `model_type` that need more than the layers of `modules`, and what that is."""

OFF_BY_NULL = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
"""Keys of a config.json that null turns off; null in another one says no more than that the key is left out."""

SILU = {"hidden_act": "silu"}
NO_BIAS = {"attention_bias": False, "mlp_bias": False}


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    `keys` are our parameter names → Hugging Face's where they are not `HF_KEYS`, `dropped` ours that it does not have,
    `fused` the names of a checkpoint whose rows are those of several of ours, in order. `defaults` are the values of
    transformers' config class for keys that a config.json leaves out, `fixed` the only values that are computed here
    (a tuple of them, or one). `fields` are the fields of `DecoderConfig` that all models of the family share, `read`
    gives those that a config.json decides, and `write` the keys of one that decide them. `meta_keys` are Meta's names,
    where Meta published files of its own. With `fits_fp16` False, activations of its models exceed the range of
    float16. `scales_inputs` tells that transformers applies `embed_scale` to embeddings that it is given, too.
    """

    name: str
    model_type: str
    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    meta_keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[HFConfig], Fields] = lambda config: {}
    write: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    fields: Mapping[str, Any] = field(default_factory=dict)
    fits_fp16: bool = True
    scales_inputs: bool = False

    @cached_property
    def hf_keys(self) -> dict[str, str]:
        """Our parameter names → Hugging Face's; those of one fused matrix have its name."""
        fused = {ours: theirs for theirs, parts in self.fused.items() for ours in parts}
        return {ours: theirs for ours, theirs in (HF_KEYS | self.keys | fused).items() if ours not in self.dropped}

    @cached_property
    def _from_hf_keys(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.hf_keys.items() if theirs not in self.fused}

    def to_hf(self, name: str) -> str:
        """Return the Hugging Face name of our parameter `name`, or of the matrix that it is a part of."""
        return rename(self.hf_keys, name) or name

    def parts(self, name: str) -> tuple[str, ...]:
        """Return our names of the parts of the Hugging Face parameter `name`, row below row; () unless it is fused."""
        number = LAYER.search(name)
        parts = self.fused.get(LAYER.sub("{}", name, count=1), ())
        return tuple(part.format(number.group() if number else "") for part in parts)

    def from_hf(self, name: str) -> str | None:
        """Return our name of a Hugging Face parameter, None for one that carries nothing; an unknown one stays."""
        return None if name.endswith(IGNORED) else rename(self._from_hf_keys, name) or name

    def decoder_args(self, config: HFConfig) -> Fields:
        """Read a config.json as the fields of `DecoderConfig`; ValueError names what is not computed here."""
        check_values(config)
        given = {key: value for key, value in config.items() if value is not None or key in OFF_BY_NULL}
        config = {**self.defaults, **given}
        for key, allowed in self.fixed.items():
            allowed = allowed if isinstance(allowed, tuple) else (allowed,)
            if config.get(key, allowed[0]) not in allowed:
                raise ValueError(f"config.json has {key} {config[key]!r}; {self.name} models here have {allowed[0]!r}")
        heads = config["num_attention_heads"]
        return {
            "vocab_size": config["vocab_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads", heads),
            "embed_dim": config["hidden_size"],
            "intermediate_dim": config.get("intermediate_size"),
            "max_seq_len": config["max_position_embeddings"],
            "norm_eps": config["rms_norm_eps"],
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
            "head_dim": config.get("head_dim", config["hidden_size"] // heads),
            **rope_fields(config),
            **self.fields,
            **self.read(config),
        }


def hf_config(family: Family, config: DecoderConfig) -> dict[str, Any]:
    """Describe a model as a config.json that transformers 4 and 5 read: the reverse of `Family.decoder_args`.

    For weights that came without one, as Meta's and GGUF do.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{key: value[0] if isinstance(value, tuple) else value for key, value in family.fixed.items()},
        **hf_rope(config),
        **family.write(config),
    }


def rename(table: Mapping[str, str], name: str) -> str | None:
    """Look `name` up in `table`, whose `{}` stands for the number of the layer; None when the table lacks it."""
    number = LAYER.search(name)
    target = table.get(LAYER.sub("{}", name, count=1))
    return target and target.format(number.group() if number else "")
