"""Adapters on one tiny Llama in float64, whose losses, logits and gradient norms PEFT 0.21 gave."""

import math

import pytest
import torch
import torch.nn.functional as F

from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import IA3, AdaLoRA, RankAllocator, VeRA, adapter_state

CONFIG = DecoderConfig(
    vocab_size=32, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=16, max_seq_len=64, intermediate_dim=32
)
TOKENS = torch.tensor([[1, 5, 9, 14, 3, 7, 2], [1, 8, 8, 20, 31, 4, 2]])
EVERYTHING = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
TARGETS = dict(EVERYTHING)
EVERYTHING |= {"lora_rank": 4, "lora_alpha": 8}
PEFT_NAMES = {"lora_a.weight": "lora_A", "lora_b.weight": "lora_B", "magnitude": "lora_magnitude_vector"}
PEFT_NAMES |= {"lora_a": "lora_A", "lora_b": "lora_B", "lora_e": "lora_E"}
PEFT_NAMES |= {name: name for name in ("ia3_l", "vera_lambda_b", "vera_lambda_d")}


def wave(number: int, shape: torch.Size, scale: float, step: float) -> torch.Tensor:
    i = torch.arange(shape.numel(), dtype=torch.float64)
    return (scale * torch.sin(step * i + number + 0.013 * i**2)).view(shape)


def filled(model):
    """The model in float64: its base weights, then the factors of its adapters, waves in the order of PEFT's names."""
    model = model.double()
    trained = adapter_state(model)
    base = [name for name, _ in model.named_parameters() if "norm" not in name and name not in trained]

    def peft_name(name):
        [ours] = [each for each in PEFT_NAMES if name.endswith(f".{each}")]
        return f"{LLAMA.to_hf(f'{name.removesuffix(ours)}weight').removesuffix('weight')}{PEFT_NAMES[ours]}"

    with torch.no_grad():
        for number, name in enumerate(sorted(base, key=LLAMA.to_hf)):
            param = model.get_parameter(name)
            param.copy_(wave(number, param.shape, 0.25, 1.7))
        for number, name in enumerate(sorted((name for name in trained if "magnitude" not in name), key=peft_name)):
            param = model.get_parameter(name)
            param.copy_(wave(number, param.shape, 0.2, 0.9) + ("ia3" in name))
    return model


def measured(model, penalty=lambda: 0.0) -> dict[str, float]:
    logits = model(TOKENS)
    loss = penalty() + F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    values = {"loss": loss.item(), "logit": logits[1, -1, 0].item()}
    if any(param.requires_grad for param in model.parameters()):
        loss.backward()
        for kind in PEFT_NAMES:
            grads = [p.grad for name, p in adapter_state(model).items() if name.endswith(f".{kind}")]
            if grads:
                values[PEFT_NAMES[kind]] = math.sqrt(sum(grad.square().sum().item() for grad in grads))
    return values


def test_the_base():
    model = filled(decoder(CONFIG)).requires_grad_(False)
    logits = model(TOKENS)
    assert measured(model)["loss"] == pytest.approx(3.490245, abs=1e-6)
    assert logits.sum().item() == pytest.approx(-28.148150, abs=1e-5)
    assert logits[0, 0, :3].tolist() == pytest.approx([-0.102754, 0.922849, 0.489773], abs=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"loss": 3.652980, "logit": -0.285915, "lora_A": 1.958247, "lora_B": 2.602744}),
        ({"use_rslora": True}, {"loss": 3.881953, "logit": -1.499903, "lora_A": 2.251738, "lora_B": 2.549563}),
    ],
    ids=["LoRA", "rsLoRA"],
)
def test_low_rank(arguments, expected, fused):
    model = filled(lora_decoder(CONFIG, **EVERYTHING, **arguments, fused_lora=fused))
    assert measured(model) == pytest.approx(expected, abs=2e-6)


def test_dora():
    model = filled(lora_decoder(CONFIG, **EVERYTHING, use_dora=True))
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "magnitude"):
                module.magnitude.copy_(module.weight.norm(dim=1))
    expected = {"loss": 3.611000, "logit": -0.689107, "lora_A": 2.254496, "lora_B": 3.102126}
    assert measured(model) == pytest.approx(expected | {"lora_magnitude_vector": 1.166066}, abs=2e-6)


@pytest.mark.parametrize(
    ("targets", "adapter", "num_trained", "expected"),
    [
        (["k_proj", "v_proj", "down_proj"], IA3, 96, {"loss": 3.501339, "logit": -0.050511, "ia3_l": 0.145435}),
        (
            ["q_proj", "v_proj"],
            lambda: VeRA(r=4),
            64,
            {"loss": 3.511001, "logit": -0.255900, "vera_lambda_b": 0.104639, "vera_lambda_d": 0.092491},
        ),
    ],
    ids=["IA3", "VeRA"],
)
def test_other_methods(targets, adapter, num_trained, expected):
    model = filled(lora_decoder(CONFIG, target_modules=targets, adapter=adapter()))
    assert sum(param.numel() for param in model.parameters() if param.requires_grad) == num_trained
    assert measured(model) == pytest.approx(expected, abs=2e-6)


def test_adalora():
    """With the penalty in the loss, as PEFT returns it."""
    model = filled(lora_decoder(CONFIG, **TARGETS, adapter=AdaLoRA(init_r=4, target_r=2, lora_alpha=8)))
    allocator = RankAllocator(model, total_steps=10)
    expected = {"loss": 4.121020, "logit": -0.136371, "lora_A": 0.191466, "lora_B": 0.211168, "lora_E": 0.237835}
    assert measured(model, allocator.penalty) == pytest.approx(expected, abs=2e-6)
    assert allocator.penalty().item() == pytest.approx(0.678757, abs=1e-6)


def test_adalora_prunes_as_peft_does_with_its_scale_frozen():
    method = AdaLoRA(init_r=4, target_r=2, lora_alpha=8, tinit=1, tfinal=1)
    model = filled(lora_decoder(CONFIG, target_modules=["q_proj", "v_proj"], adapter=method))
    allocator = RankAllocator(model, total_steps=5)
    optimizer = torch.optim.SGD([param for param in model.parameters() if param.requires_grad], lr=0.1)
    losses, ranks = [], []
    for step in range(1, 6):
        loss = F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()) + allocator.penalty()
        loss.backward()
        optimizer.step()
        allocator.step(step)
        optimizer.zero_grad()
        losses.append(loss.item())
        ranks.append(list(allocator.ranks().values()))
    assert losses == pytest.approx([4.238501, 4.233239, 4.227188, 4.220155, 4.214852], abs=1e-6)
    assert ranks == [[4, 4, 4, 4], [2, 4, 1, 3], [2, 3, 1, 2], [2, 3, 1, 2], [2, 3, 1, 2]]
    assert allocator.is_final
