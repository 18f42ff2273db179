"""Which parameters are the adapters'."""

import torch
from torch import nn

from torchtune_lite.peft import DoRALinear, LoRALinear, adapter_modules, adapter_state, freeze_base


def a_model():
    return nn.ModuleDict(
        {
            "plain": nn.Linear(8, 8),
            "layers": nn.ModuleList([LoRALinear(8, 8, rank=2, alpha=4), DoRALinear(8, 8, rank=2, alpha=4)]),
        }
    )


def test_adapters_are_found_by_their_full_names():
    model = a_model()
    assert adapter_modules(model) == {"layers.0": model["layers"][0], "layers.1": model["layers"][1]}
    assert adapter_modules(model["plain"]) == adapter_state(model["plain"]) == {}


def test_their_state_is_the_live_parameters():
    model = a_model()
    state = adapter_state(model)
    assert sorted(state) == [
        "layers.0.lora_a.weight",
        "layers.0.lora_b.weight",
        "layers.1.lora_a.weight",
        "layers.1.lora_b.weight",
        "layers.1.magnitude",
    ]
    with torch.no_grad():
        state["layers.1.magnitude"].fill_(3.0)
    assert (model["layers"][1].magnitude == 3.0).all()


def test_freezing_the_base_leaves_the_adapters_to_be_trained():
    model = a_model()
    freeze_base(model)
    assert {name for name, param in model.named_parameters() if param.requires_grad} == set(adapter_state(model))
