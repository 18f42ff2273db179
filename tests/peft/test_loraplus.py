import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_lite.models.builders import lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.optim import get_cosine_schedule_with_warmup
from torchtune_lite.peft import adapter_optimizer

CONFIG = DecoderConfig(
    vocab_size=32, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=16, max_seq_len=64, intermediate_dim=32
)


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_rates_are_those_of_peft(use_dora):
    model = lora_decoder(CONFIG, ["q_proj", "v_proj"], use_dora=use_dora)
    optimizer = adapter_optimizer(model, adamw, loraplus_lr_ratio=16)
    ours = sorted((tuple(p.shape), group["lr"]) for group in optimizer.param_groups for p in group["params"])

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, **sizes))
    theirs = get_peft_model(theirs, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], use_dora=use_dora))
    expected = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    assert ours == sorted((tuple(p.shape), group["lr"]) for group in expected.param_groups for p in group["params"])


def test_a_schedule_scales_both_rates():
    model = lora_decoder(CONFIG, ["q_proj"])
    optimizer = adapter_optimizer(model, adamw, loraplus_lr_ratio=4)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
        slow, fast = (group["lr"] for group in optimizer.param_groups)
        assert fast == pytest.approx(4 * slow)


def test_without_a_ratio_there_is_one_group():
    model = lora_decoder(CONFIG, ["q_proj"])
    [group] = adapter_optimizer(model, adamw).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]


def test_a_model_without_an_a_is_refused():
    with pytest.raises(ValueError, match="loraplus_lr_ratio is for LoRA's A and B"):
        adapter_optimizer(torch.nn.Linear(2, 2), adamw, loraplus_lr_ratio=4)
