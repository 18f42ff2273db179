"""Other methods as the plain LoRA of their function, in PEFT and in llama.cpp's engine."""

import json

import peft
import pytest
import torch
import transformers

from tests.export.engine import Engine
from tests.export.models import prompts
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import Options, export_model, open_source

TARGETS = ["q_proj", "down_proj"]


def adalora(ranks):
    """PEFT's config of an AdaLoRA that is pruned to `ranks`, of each projection in the order of its layers."""
    paths = [f"model.layers.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, total_step=10, target_modules=TARGETS)
    config.task_type = "CAUSAL_LM"
    config.rank_pattern = {
        f"{path}.lora_E": [number < rank for number in range(4)] for path, rank in zip(paths, ranks, strict=True)
    }
    return config


@pytest.fixture
def pruned(llama, adapt):
    """An AdaLoRA of PEFT's, one projection of which has rank 0; and its logits."""
    config = adalora([3, 1, 0, 2])
    patterns, config.rank_pattern = config.rank_pattern, None
    folder, adapted = adapt(llama, "adapter", other=config)
    for path, flags in patterns.items():
        module = adapted.base_model.model.get_submodule(path.removesuffix(".lora_E"))
        module.lora_E["default"].data[~torch.tensor(flags)] = 0
    adapted.peft_config["default"].rank_pattern = patterns
    [ids] = prompts(20)
    with torch.no_grad():
        logits = adapted(ids).logits
    adapted.save_pretrained(folder)
    return folder, ids, logits


@pytest.mark.parametrize("one_rank", [False, True])
def test_adalora_is_a_lora(llama, pruned, tmp_path, one_rank):
    folder, ids, expected = pruned
    found = export_model(open_source(folder), "lora", tmp_path / "out", Options("mine", one_rank=one_rank))
    assert found.largest < 1e-4
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and bool(config["rank_pattern"]) == (not one_rank)
    if one_rank:
        assert (config["r"], config["lora_alpha"], config["alpha_pattern"]) == (3, 3, {})
    else:
        assert not any("layers.1.self_attn.q_proj" in target for target in config["target_modules"])
    plain = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        logits = peft.PeftModel.from_pretrained(plain, tmp_path / "out")(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_llama_cpp_takes_adalora_as_a_lora(llama, pruned, tmp_path):
    folder, ids, expected = pruned
    export_model(open_source(llama), "gguf", tmp_path / "model", Options("m", "f32"))
    assert export_model(open_source(folder), "gguf-adapter", tmp_path / "lora", Options("m")).largest < 1e-4
    engine = Engine(tmp_path / "model/m-f32.gguf", lora=tmp_path / "lora/m-lora.gguf")
    ours = expected[0, -1].log_softmax(-1)
    error = max(abs(ours[token].item() - value) for token, value in engine.log_probs(ids[0].tolist()).items())
    assert error < 1e-4 * max(1.0, expected[0, -1].std().item())


def test_vera_is_a_lora(llama, adapt, tmp_path):
    config = peft.VeraConfig(r=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    folder, _ = adapt(llama, "adapter", other=config)
    assert export_model(open_source(folder), "lora", tmp_path / "out", Options("mine")).largest < 1e-4
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (8, {})


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"trainable_token_indices": [5, 6]}, "has rows of tokens, which no LoRA has: export the merged model"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "has the whole .*, which no LoRA has: export the merged"),
    ],
)
@pytest.mark.parametrize("kind", ["lora", "gguf-adapter"])
def test_a_trained_embedding_is_no_lora(llama, adapt, tmp_path, options, what, kind):
    config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    folder, _ = adapt(llama, "adapter", other=config)
    with pytest.raises(ConfigError, match=what):
        export_model(open_source(folder), kind, tmp_path / "out", Options("mine"))


def test_what_is_no_lora_is_refused(llama, adapt, tmp_path):
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    folder, _ = adapt(llama, "adapter", other=config)
    with pytest.raises(ConfigError, match="is IA3, whose function no LoRA has: export the merged model"):
        export_model(open_source(folder), "lora", tmp_path / "out", Options("mine"))
    with pytest.raises(ConfigError, match="is a merged model and has no adapter"):
        export_model(open_source(llama), "lora", tmp_path / "out", Options("mine"))
