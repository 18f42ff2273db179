"""One adapted projection of ours and PEFT's own, with the same random weights."""

from collections.abc import Callable
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn

from torchtune_lite.peft import LoRALinear

IN, OUT, RANK, ALPHA = 48, 32, 4, 24


@pytest.fixture
def beside_peft() -> Callable[[type[LoRALinear]], SimpleNamespace]:
    """Return `ours`, `theirs`, an input `x`, and `params`: pairs of the trained parameters of both, none zero."""

    def build(kind: type[LoRALinear]) -> SimpleNamespace:
        torch.manual_seed(0)
        ours = kind(IN, OUT, RANK, ALPHA)
        nn.init.normal_(ours.lora_b.weight)
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_dora=hasattr(ours, "magnitude"))
        base = nn.Sequential(nn.Linear(IN, OUT, bias=False))
        base[0].weight.data.copy_(ours.weight)
        theirs = peft.get_peft_model(base, config).base_model.model[0]
        params = [
            (ours.lora_a.weight, theirs.lora_A["default"].weight),
            (ours.lora_b.weight, theirs.lora_B["default"].weight),
        ]
        if config.use_dora:
            ours.magnitude.data.uniform_(0.5, 1.5)
            params.append((ours.magnitude, theirs.lora_magnitude_vector["default"].weight))
        for mine, other in params:
            other.data.copy_(mine)
        return SimpleNamespace(ours=ours, theirs=theirs, params=params, x=torch.randn(2, 5, IN, requires_grad=True))

    return build
