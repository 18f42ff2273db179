"""A model by its config's node, whose adapters are those of a folder."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from torchtune_lite.checkpoint import FullModelHFCheckpointer, build_decoder, put_saved_adapters
from torchtune_lite.peft import adapter_modules, is_quantized

NODE = {"_component_": "torchtune_lite.models.from_checkpoint", "lora_attn_modules": ["v_proj"], "lora_rank": 2}


@pytest.fixture
def saved(hf_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(hf_base.dir, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, use_rslora=True, target_modules=["q_proj", "down_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_method_rank_and_targets_are_those_of_the_folder(hf_base, saved):
    checkpointer = FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=saved)
    model = build_decoder(checkpointer, NODE | {"quantize_base": True, "fused_lora": False})
    adapters = adapter_modules(model)
    assert {name.rpartition(".")[2] for name in adapters} == {"q_proj", "w2"}
    for each in adapters.values():
        assert (each.rank, each.alpha, each.scaling, each.dropout.p) == (4, 6, 3, 0.1)
        assert each.use_rslora and not each.fused and is_quantized(each.weight)


def test_with_merge_adapter_they_are_the_node_s(hf_base, saved):
    checkpointer = FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=saved, merge_adapter=True)
    model = build_decoder(checkpointer, NODE)
    assert {(name.rpartition(".")[2], each.rank) for name, each in adapter_modules(model).items()} == {("v_proj", 2)}


def test_a_builder_without_adapters_is_given_them_to_answer(hf_base, saved):
    checkpointer = FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=saved)
    sizes = checkpointer.decoder_args | {"_component_": "torchtune_lite.models.llama2.llama2"}
    model = build_decoder(checkpointer, sizes)
    assert not adapter_modules(model)
    with torch.device("meta"):
        put_saved_adapters(checkpointer, model)
    assert len(adapter_modules(model)) == 4
