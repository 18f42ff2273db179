import shutil

import peft
import pytest
import torch
import transformers

from tests.export.models import prompts
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import merge


def test_adapters_with_weights_are_those_that_peft_adds_up(llama, adapt, tmp_path):
    first, _ = adapt(llama, "first", seed=1)
    second, _ = adapt(llama, "second", seed=2, target_modules=["q_proj", "v_proj"], r=2)
    found = merge([(first, 0.7), (second, -0.5)], tmp_path / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, first, adapter_name="a")
    model.load_adapter(second, adapter_name="b")
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj", "down_proj")) and hasattr(module, "lora_A"):
            for adapter, share in (("a", 0.7), ("b", -0.5)):
                if adapter in module.lora_A:
                    module.get_base_layer().weight.data += share * module.get_delta_weight(adapter)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    [ids] = prompts(30)
    with torch.no_grad(), model.disable_adapter():
        assert (merged(ids).logits - model(ids).logits).abs().max() < 1e-4
    assert found.largest < 1e-4


def test_what_has_no_base_in_common_is_refused(llama, adapt, tmp_path):
    folder, _ = adapt(llama, "adapter")
    with pytest.raises(ConfigError, match="is a whole model; 'tune merge' takes adapters"):
        merge([(folder, 1.0), (llama, 1.0)], tmp_path / "out")
    shutil.copytree(llama, tmp_path / "twin")
    other, _ = adapt(tmp_path / "twin", "other")
    with pytest.raises(ConfigError, match="the adapters are of several bases"):
        merge([(folder, 1.0), (other, 1.0)], tmp_path / "out")
    merge([(folder, 1.0), (other, 1.0)], tmp_path / "out", base=llama)


def test_adapters_of_different_numbers_of_tokens_are_refused(llama, adapt, tmp_path):
    folder, _ = adapt(llama, "adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 2, mean_resizing=False)
    new = [size, size + 1]
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=new)
    grown = peft.get_peft_model(model, config)
    grown.peft_config["default"].base_model_name_or_path = str(llama)
    grown.save_pretrained(tmp_path / "grown", save_embedding_layers=False)
    with pytest.raises(
        ConfigError, match="the adapters are of different numbers of tokens: .*; merge those of one tok"
    ):
        merge([(folder, 1.0), (tmp_path / "grown", 1.0)], tmp_path / "out")
