"""Tiny models of every family, made by transformers with random parameters: sizes at which each option has its effect.

Norms are not 1 and biases not 0, windows and original lengths are shorter than the texts, multipliers are not 1: a
model as transformers initialises it would hide most faults. b batch, s sequence.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

transformers.logging.set_verbosity_error()

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 512}
PLAIN = SIZES | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
FREE = PLAIN | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}  # not 128 / 4


def rope(theta: float, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def original(length: int, **more: Any) -> dict[str, Any]:
    return {"original_max_position_embeddings": length, **more}


def ramp(count: int, last: float) -> list[float]:
    return [1 + (last - 1) * i / (count - 1) for i in range(count)]


def by_kind(sliding: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    kinds = {"sliding_attention": sliding, "full_attention": full}
    return {"rope_parameters": {kind: each["rope_parameters"] for kind, each in kinds.items()}}


TIED = {"tie_word_embeddings": True}
SLIDING, NO_WINDOW = {"sliding_window": 8}, {"sliding_window": None}
LLAMA3 = original(64, low_freq_factor=1, high_freq_factor=4)
GRANITE = {"embedding_multiplier": 12, "residual_multiplier": 0.22, "attention_multiplier": 1 / 64, **rope(1e7)}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", PLAIN | {"num_key_value_heads": 4} | rope(1e4)),
    "code_llama": ("Llama", PLAIN | rope(1e6)),
    "llama3": ("Llama", PLAIN | rope(5e5)),
    "llama3_1": ("Llama", PLAIN | rope(5e5, "llama3", factor=8, **LLAMA3)),
    "llama3_2": ("Llama", PLAIN | TIED | rope(5e5, "llama3", factor=32, **LLAMA3)),
    "llama_linear": ("Llama", PLAIN | rope(1e4, "linear", factor=4)),
    "llama_dynamic": ("Llama", PLAIN | {"max_position_embeddings": 32} | rope(1e4, "dynamic", factor=4)),
    "llama_yarn": ("Llama", PLAIN | rope(1e4, "yarn", **original(64, factor=4))),
    "smollm2": ("Llama", PLAIN | TIED | rope(1e5)),
    "mistral_v01": ("Mistral", FREE | SLIDING | rope(1e4)),
    "mistral_nemo": ("Mistral", FREE | NO_WINDOW | rope(1e6)),
    "ministral": (
        "Ministral",
        FREE
        | {"num_hidden_layers": 4, "layer_types": ["full_attention", *["sliding_attention"] * 3]}
        | SLIDING
        | rope(1e6),
    ),
    "ministral3": (
        "Ministral3",
        FREE
        | TIED
        | rope(1e6, "yarn", **original(16, factor=16, mscale=1, mscale_all_dim=1, llama_4_scaling_beta=0.1)),
    ),
    "qwen2": ("Qwen2", PLAIN | TIED | rope(1e6)),
    "qwen2_5": ("Qwen2", PLAIN | {"tie_word_embeddings": False} | rope(1e6)),
    "qwen3": ("Qwen3", FREE | TIED | rope(1e6)),
    "smollm3": ("SmolLM3", PLAIN | TIED | {"num_hidden_layers": 4} | rope(5e6)),
    "gemma": ("Gemma", FREE | {"num_key_value_heads": 1, "head_dim": 128} | rope(1e4)),
    "gemma2": (
        "Gemma2",
        FREE
        | SLIDING
        | {"num_hidden_layers": 4, "query_pre_attn_scalar": 48}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
        | rope(1e4),
    ),
    "gemma3": (
        "Gemma3Text",
        FREE
        | SLIDING
        | {"num_hidden_layers": 7, "query_pre_attn_scalar": 48}
        | by_kind(rope(1e4), rope(1e6, "linear", factor=8)),
    ),
    "phi3": (
        "Phi3",
        PLAIN | {"num_key_value_heads": 4, "sliding_window": 7} | original(256) | rope(1e4),
    ),
    "phi3_128k": (
        "Phi3",
        PLAIN
        | NO_WINDOW
        | original(64)
        | rope(1e4, "longrope", **original(64, short_factor=ramp(32, 1.62), long_factor=ramp(32, 16.5))),
    ),
    "phi4": ("Phi3", PLAIN | NO_WINDOW | rope(250_000)),
    "phi4_mini": (
        "Phi3",
        PLAIN
        | NO_WINDOW
        | TIED
        | original(64)
        | rope(
            1e4,
            "longrope",
            partial_rotary_factor=0.75,
            **original(64, short_factor=[1.0] * 24, long_factor=ramp(24, 12.5)),
        ),
    ),
    "olmo2": ("Olmo2", PLAIN | rope(5e5)),
    "olmo3": (
        "Olmo3",
        PLAIN
        | SLIDING
        | {"num_hidden_layers": 4}
        | by_kind(rope(5e5), rope(5e5, "yarn", **original(32, factor=8, attention_factor=1.20794))),
    ),
    "granite": ("Granite", PLAIN | TIED | {"logits_scaling": 8} | GRANITE),
    "granite4": (
        "GraniteMoeHybrid",
        PLAIN
        | TIED
        | {"logits_scaling": 10, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 512}
        | {"position_embedding_type": "rope", "layer_types": ["full_attention"] * 2}
        | {"mamba_n_heads": 8, "mamba_d_state": 16}
        | GRANITE,
    ),
    "seed_oss": (
        "SeedOss",
        FREE
        | {"attention_bias": True, "attention_out_bias": False, "residual_dropout": 0, "attention_dropout": 0}
        | rope(1e7),
    ),
    "exaone4": ("Exaone4", PLAIN | SLIDING | {"num_hidden_layers": 4, "sliding_window_pattern": 4} | rope(1e6)),
}
"""By name: the class of transformers and the arguments of its config."""


def config(name: str) -> transformers.PretrainedConfig:
    kind, arguments = TINY[name]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return getattr(transformers, f"{kind}Config")(**arguments | special)


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, param in model.named_parameters():
        values = torch.randn(param.shape, generator=generator)
        if param.dim() == 1:
            values = param.mean().round() + 0.3 * values
        else:
            values *= 0.5 if "embed" in name else param.shape[-1] ** -0.5
        param.data.copy_(values)


def make(name: str) -> transformers.PreTrainedModel:
    """Make the model of transformers in float32, anew each time, since some remember the lengths they have seen."""
    model_class = getattr(transformers, f"{TINY[name][0].removesuffix('Text')}ForCausalLM")
    model = model_class._from_config(config(name), attn_implementation="eager", dtype=torch.float32).eval()
    randomise(model)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
