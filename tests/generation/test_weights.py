"""A model answers with merged, decoded or int8 weights, and has its own again afterwards."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from torchtune_lite.errors import ConfigError
from torchtune_lite.generation import Int8Linear, inference_weights, weights
from torchtune_lite.models import from_checkpoint
from torchtune_lite.peft import LoRALinear

SIZES = {"vocab_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 128, "max_seq_len": 32}
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 8}
TOKENS = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def made(**options):
    torch.manual_seed(0)
    model = from_checkpoint(**SIZES, intermediate_dim=256, **options).eval()
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b.weight, std=0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("options", [LORA, LORA | {"quantize_base": True}, LORA | {"use_dora": True}, {}])
def test_merged_weights_compute_the_same_and_go_away(options):
    model = made(**options)
    before, state = model(TOKENS), copy.deepcopy(list(model.state_dict()))
    with inference_weights(model):
        projections = [model.layers[0].attn.q_proj, model.layers[1].mlp.w2, model.layers[0].attn.k_proj]
        assert all(type(each) is nn.Linear for each in projections)
        assert_close(model(TOKENS), before, atol=1e-4, rtol=1e-4)
    assert list(model.state_dict()) == state and torch.equal(model(TOKENS), before)
    assert isinstance(model.layers[0].attn.q_proj, LoRALinear) == bool(options)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [LORA, LORA | {"quantize_base": True}, {"tie_word_embeddings": True, "logit_softcap": 3.0}]
)
def test_int8_weights_compute_nearly_the_same(options):
    model = made(**options)
    before = model(TOKENS)
    with inference_weights(model, int8=True):
        assert isinstance(model.layers[0].attn.k_proj, Int8Linear) and isinstance(model.output, Int8Linear)
        found = model(TOKENS)
        assert 1e-4 < (found - before).norm() / before.norm() < 0.05
    assert torch.equal(model(TOKENS), before)


@torch.no_grad()
def test_an_adapter_that_is_off_is_not_merged():
    model = made(**LORA)
    for layer in model.layers:
        layer.attn.q_proj.enabled = False
    before = model(TOKENS)
    with inference_weights(model):
        assert isinstance(model.layers[0].attn.q_proj, LoRALinear)
        assert_close(model(TOKENS), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_where_memory_is_short_nothing_is_merged_and_a_line_says_so(monkeypatch, caplog):
    model = made(**LORA)
    size = sum(each.weight.numel() * 4 for each in model.modules() if isinstance(each, LoRALinear))
    for free, merged in ((int(size / weights.SHARE) + 1, True), (size, False), (None, True)):
        monkeypatch.setattr(weights, "free_memory", lambda device, free=free: free)
        with inference_weights(model):
            assert isinstance(model.layers[0].attn.q_proj, LoRALinear) != merged
    assert [each.getMessage()[:40] for each in caplog.records] == ["adapters are not merged for answers, whi"]


def test_the_weights_come_back_after_an_error():
    model = made(**LORA)
    with pytest.raises(RuntimeError, match="midway"), inference_weights(model, int8=True):
        raise RuntimeError("midway")
    assert isinstance(model.layers[0].attn.q_proj, LoRALinear)


def test_int8_is_for_a_cpu():
    with torch.device("meta"):
        model = made()
    with (
        pytest.raises(ConfigError, match="int8 is for a model on a CPU; this one is on meta"),
        inference_weights(model, int8=True),
    ):
        pass
