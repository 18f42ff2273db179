"""An adapter merged into its base as the base is read."""

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.errors import ConfigError
from torchtune_lite.models import llama2

TARGETS = ["k_proj", "down_proj"]


@pytest.fixture(
    params=[LoraConfig(r=4, target_modules=TARGETS), IA3Config(target_modules=TARGETS, feedforward_modules=TARGETS[1:])]
)
def adapted(request, hf_base, tmp_path):
    """The folder of an adapter of PEFT's, and its logits."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(hf_base.dir, dtype=torch.float32), request.param)
    torch.manual_seed(3)
    for param in model.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn_like(param)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model.eval()(hf_base.tokens).logits


def test_a_new_adapter_stands_on_the_merged_base(hf_base, adapted, logits, tmp_path):
    folder, expected = adapted
    checkpointer = FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=folder, merge_adapter=True)
    with torch.device("meta"):
        model = llama2.lora_llama2(**checkpointer.decoder_args, lora_attn_modules=["k_proj", "q_proj"])
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    torch.testing.assert_close(logits(model.eval(), hf_base.tokens), expected, rtol=0, atol=1e-4)
    torch.nn.init.normal_(model.layers[0].attn.k_proj.lora_b.weight)
    checkpointer.save(tmp_path / "out", model, verify=True)
    live = logits(model, hf_base.tokens)
    assert (live - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "out", hf_base.tokens), live, rtol=0, atol=1e-4)


def test_in_nf4_it_is_quantised_after_the_merge_and_may_be_merged_into_the_original(hf_base, adapted, logits, tmp_path):
    folder, _ = adapted
    checkpointer = FullModelHFCheckpointer(
        hf_base.dir, adapter_checkpoint=folder, merge_adapter=True, merge_into="original", cache_quantized=True
    )
    with torch.device("meta"):
        model = llama2.lora_llama2(**checkpointer.decoder_args, target_modules=["down_proj"], quantize_base=True)
    checkpointer.load(model, device="cpu", dtype=torch.float32, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # it would be that of the base alone
    checkpointer.save(tmp_path / "out", model, verify=True)
    base, saved = (load_file(each / "model.safetensors") for each in (hf_base.dir, tmp_path / "out"))
    name = "model.layers.0.self_attn.{}_proj.weight"
    assert torch.equal(base[name.format("q")], saved[name.format("q")])
    assert (base[name.format("k")] - saved[name.format("k")]).abs().max() > 0.01


def test_there_must_be_an_adapter_to_merge(hf_base):
    with pytest.raises(ConfigError, match="merge_adapter: True merges adapter_checkpoint, which is null"):
        FullModelHFCheckpointer(hf_base.dir, merge_adapter=True)
