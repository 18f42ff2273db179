"""Prototype: every architecture of wave one as a table."""
import math
from torchtune_lite.models.families import *
from torchtune_lite.models.families import Family, Fields, HFConfig, sliding_fields

SILU = {"hidden_act": "silu"}
NO_BIAS = {"attention_bias": False, "mlp_bias": False}

LLAMA = Family("llama", "llama", "LlamaForCausalLM", fixed=SILU | NO_BIAS, defaults={"rms_norm_eps": 1e-6})
def _mistral(c):
    return {"layer_kinds": ("sliding",), "window": c["sliding_window"]} if c.get("sliding_window") else {}
MISTRAL = Family("mistral", "mistral", "MistralForCausalLM", fixed=SILU, read=_mistral, defaults={"rms_norm_eps": 1e-6})
MINISTRAL3 = Family("ministral3", "ministral3", "Ministral3ForCausalLM", fixed=SILU | {"sliding_window": (None,)}, defaults={"rms_norm_eps": 1e-5})
MINISTRAL = Family("ministral", "ministral", "MinistralForCausalLM", fixed=SILU, read=sliding_fields, defaults={"rms_norm_eps": 1e-6})
def _qwen(c):
    if not c.get("use_sliding_window"):
        return {}
    first = c.get("max_window_layers", 28)
    return sliding_fields(c, tuple("sliding" if i >= first else "full" for i in range(c["num_hidden_layers"])))
QKV = ("q_proj", "k_proj", "v_proj")
QWEN2 = Family("qwen2", "qwen2", "Qwen2ForCausalLM", keys=BIAS_KEYS, dropped=("layers.{}.attn.output_proj.bias",), fixed=SILU, read=_qwen, fields={"biased": QKV}, defaults={"rms_norm_eps": 1e-6})
QWEN3 = Family("qwen3", "qwen3", "Qwen3ForCausalLM", keys=QK_NORM_KEYS, fixed=SILU | {"attention_bias": False}, read=_qwen, fields={"qk_norm": "head"}, defaults={"rms_norm_eps": 1e-6, "head_dim": 128})
def _smollm3(c):
    rotates = c.get("no_rope_layers") or [int((i + 1) % c.get("no_rope_layer_interval", 4) != 0) for i in range(c["num_hidden_layers"])]
    return {"layer_kinds": tuple("full" if r else "nope" for r in rotates)}
SMOLLM3 = Family("smollm3", "smollm3", "SmolLM3ForCausalLM", fixed=SILU | NO_BIAS | {"use_sliding_window": False}, read=_smollm3, defaults={"tie_word_embeddings": True, "rope_theta": 2e6, "rms_norm_eps": 1e-6})
PHI3 = Family("phi3", "phi3", "Phi3ForCausalLM", fused={
    "model.layers.{}.self_attn.qkv_proj.weight": tuple(f"layers.{{}}.attn.{x}.weight" for x in QKV),
    "model.layers.{}.mlp.gate_up_proj.weight": ("layers.{}.mlp.w1.weight", "layers.{}.mlp.w3.weight")},
    fixed=SILU | {"resid_pdrop": 0, "embd_pdrop": 0, "attention_bias": False, "lm_head_bias": False}, read=_mistral, defaults={"rms_norm_eps": 1e-5})
GELU = {"activation": "gelu_tanh", "norm_offset": 1.0}
def _gemma(c):
    return {"embed_scale": math.sqrt(c["hidden_size"])}
GEMMA = Family("gemma", "gemma", "GemmaForCausalLM", fixed={"hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": False}, fields=GELU, read=_gemma, defaults={"tie_word_embeddings": True, "head_dim": 256, "rms_norm_eps": 1e-6})
GEMMA2_KEYS = {"layers.{}.mlp_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight", **POST_NORM_KEYS}
def _gemma2(c):
    kinds = tuple("full" if i % 2 else "sliding" for i in range(c["num_hidden_layers"]))
    return _gemma(c) | sliding_fields(c, kinds) | {"attn_scale": c["query_pre_attn_scalar"] ** -0.5, "attn_softcap": c.get("attn_logit_softcapping"), "logit_softcap": c.get("final_logit_softcapping")}
GEMMA2 = Family("gemma2", "gemma2", "Gemma2ForCausalLM", keys=GEMMA2_KEYS, fixed={"attention_bias": False}, fields=GELU | {"post_norm": True}, read=_gemma2, defaults={"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-6})
def _gemma3(c):
    every = c.get("sliding_window_pattern", 6)
    kinds = tuple("full" if (i + 1) % every == 0 else "sliding" for i in range(c["num_hidden_layers"]))
    local = {} if c.get("rope_parameters") else {"local_rope_base": c.get("rope_local_base_freq", 10_000.0)}
    return _gemma(c) | sliding_fields(c, kinds) | local | {"attn_scale": c["query_pre_attn_scalar"] ** -0.5}
GEMMA3 = Family("gemma3", "gemma3_text", "Gemma3ForCausalLM", keys=GEMMA2_KEYS | QK_NORM_KEYS, fixed={"attention_bias": False}, fields=GELU | {"post_norm": True, "qk_norm": "head"}, read=_gemma3, defaults={"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1e6, "rms_norm_eps": 1e-6})
OLMO_KEYS = POST_NORM_KEYS | QK_NORM_KEYS
OLMO_DROPPED = ("layers.{}.sa_norm.weight", "layers.{}.mlp_norm.weight")
OLMO2 = Family("olmo2", "olmo2", "Olmo2ForCausalLM", keys=OLMO_KEYS, dropped=OLMO_DROPPED, fixed=SILU | {"attention_bias": False}, fields={"pre_norm": False, "post_norm": True, "qk_norm": "width"}, defaults={"rms_norm_eps": 1e-5})
def _olmo3(c):
    kinds = tuple("full" if (i + 1) % 4 == 0 else "sliding" for i in range(c["num_hidden_layers"]))
    return sliding_fields(c, kinds)
OLMO3 = Family("olmo3", "olmo3", "Olmo3ForCausalLM", keys=OLMO_KEYS, dropped=OLMO_DROPPED, fixed=SILU | {"attention_bias": False}, fields={"pre_norm": False, "post_norm": True, "qk_norm": "width"}, read=_olmo3, defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5})
def _granite(c):
    return {"embed_scale": c["embedding_multiplier"], "residual_scale": c["residual_multiplier"], "attn_scale": c["attention_multiplier"], "logit_scale": 1 / c["logits_scaling"], "attn_dropout": c.get("attention_dropout", 0.0)}
GRANITE = Family("granite", "granite", "GraniteForCausalLM", fixed=SILU | NO_BIAS, read=_granite, defaults={"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0, "rms_norm_eps": 1e-6})
def _granite4(c):
    return _granite(c) | sliding_fields(c) | {"intermediate_dim": c["shared_intermediate_size"]}
GRANITE4 = Family("granite4", "granitemoehybrid", "GraniteMoeHybridForCausalLM", keys={"layers.{}.mlp.w2.weight": "model.layers.{}.shared_mlp.output_linear.weight"},
  fused={"model.layers.{}.shared_mlp.input_linear.weight": ("layers.{}.mlp.w1.weight", "layers.{}.mlp.w3.weight")}, fixed=SILU | NO_BIAS | {"num_local_experts": 0, "position_embedding_type": "rope"}, read=_granite4, defaults=GRANITE.defaults)
SEED = Family("seed_oss", "seed_oss", "SeedOssForCausalLM", keys=BIAS_KEYS, dropped=("layers.{}.attn.output_proj.bias",), fixed=SILU, fields={"biased": QKV}, defaults={"rms_norm_eps": 1e-6})
def _exaone(c):
    every = c.get("sliding_window_pattern", 4)
    kinds = tuple("full" if (i + 1) % every == 0 else "sliding" for i in range(c["num_hidden_layers"]))
    f = sliding_fields(c, kinds)
    return f | {"layer_kinds": tuple("nope" if k == "full" else k for k in f["layer_kinds"])}
EXAONE4 = Family("exaone4", "exaone4", "Exaone4ForCausalLM", keys=OLMO_KEYS, dropped=OLMO_DROPPED, fixed=SILU, fields={"pre_norm": False, "post_norm": True, "qk_norm": "head"}, read=_exaone, defaults={"rms_norm_eps": 1e-5})
ALL = [LLAMA, MISTRAL, MINISTRAL3, MINISTRAL, QWEN2, QWEN3, SMOLLM3, PHI3, GEMMA, GEMMA2, GEMMA3, OLMO2, OLMO3, GRANITE, GRANITE4, SEED, EXAONE4]
BY_TYPE = {f.model_type: f for f in ALL}
