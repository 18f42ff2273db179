"""The projections that carry an adapter are those that PEFT adapts, of the same rank and scaling."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_lite.models.builders import lora_decoder, projections
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import adapter_modules
from torchtune_lite.peft.targets import choose, names

CONFIG = DecoderConfig(
    vocab_size=32, num_layers=3, num_heads=2, num_kv_heads=1, embed_dim=16, max_seq_len=16, intermediate_dim=32
)
PATHS = projections(CONFIG)


def peft_shapes(**fields) -> dict[str, tuple[int, float]]:
    """Rank and scaling of each projection that PEFT adapts, by transformers' name."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=1, **sizes))
        adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **fields))
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and module.lora_A
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["mlp.up_proj", "lm_head"]},
        {"target_modules": r".*\.[02]\..*_proj"},
        {"target_modules": r"model\.layers\.1\.self_attn\.(q|v)_proj"},
        {"target_modules": ["v_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["v_proj", "o_proj"], "layers_to_transform": 1},
        {"target_modules": ["lm_head", "gate_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\..*": 3, r"1\.mlp\.up_proj": 5}},
        {"target_modules": "all-linear", "rank_pattern": {"k_proj": 2}, "alpha_pattern": {r".*\.mlp\..*": 4}},
        {
            "target_modules": ["k_proj"],
            "rank_pattern": {"k_proj": 2},
            "use_rslora": True,
            "alpha_pattern": {"k_proj": 3},
        },
    ],
    ids=str,
)
def test_the_same_projections_as_in_peft(fields):
    with torch.device("meta"):
        adapters = adapter_modules(lora_decoder(CONFIG, lora_rank=8, lora_alpha=16, **fields))
    ours = {names(path)[1]: (adapter.rank, adapter.scaling) for path, adapter in adapters.items()}
    assert ours == peft_shapes(**fields)


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        (["output_proj", "w1"], ["attn.output_proj", "mlp.w1"]),
        (["qkv_proj"], ["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
        (["gate_up_proj", "o_proj"], ["attn.output_proj", "mlp.w1", "mlp.w3"]),
        (r"layers\.\d\.mlp\.w\d", ["mlp.w1", "mlp.w2", "mlp.w3"]),
    ],
)
def test_our_names_and_those_of_fused_matrices_are_known(target_modules, expected):
    assert list(choose(PATHS, target_modules, 8, 16)) == [f"layers.{n}.{name}" for n in range(3) for name in expected]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q_prj"]}, "target_modules has 'q_prj', which names no projection; did you mean .q_proj"),
        ({"target_modules": ["layers.7.attn.q_proj"]}, r"'layers.7.attn.q_proj', which names no projection"),
        ({"target_modules": "q_proj"}, "'q_proj', which names no projection"),  # PEFT: the whole name
        ({"target_modules": ["proj"]}, "'proj', which names no projection"),
        ({"target_modules": "(q_proj"}, "which is not a regular expression: missing"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"k_proj": 2}}, "rank_pattern has 'k_proj', which names no"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"[": 2}}, "alpha_pattern has '\\[', which is not a regular"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 0}}, "rank_pattern 0 must be a whole number"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2.5}}, "rank_pattern 2.5 must be a whole number"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 3]}, "has 3; the layers with such a projection are"),
        ({"target_modules": ["lm_head"], "layers_to_transform": 0}, "has 0; no layer has one"),
    ],
    ids=str,
)
def test_what_fits_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        choose(PATHS, fields.pop("target_modules"), 8, 16, **fields)


def test_a_target_takes_the_place_of_the_other_keys():
    model = lora_decoder(CONFIG, ["q_proj"], apply_lora_to_mlp=True, target_modules=["v_proj"])
    assert set(adapter_modules(model)) == {f"layers.{n}.attn.v_proj" for n in range(3)}


def test_only_the_layers_chosen_are_quantised():
    config = DecoderConfig(**vars(CONFIG) | {"embed_dim": 128, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32})
    model = lora_decoder(config, target_modules=["q_proj"], layers_to_transform=1, quantize_base=True)
    kinds = [type(layer.attn.q_proj.weight).__name__ for layer in model.layers]
    assert kinds == ["Parameter", "NF4Tensor", "Parameter"]
