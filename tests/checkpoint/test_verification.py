"""The check of a written model against the live one: right merges pass with room, wrong ones do not."""

from dataclasses import replace

import pytest
import torch

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint.model_weights import merged_weights
from torchtune_lite.checkpoint.verification import Difference, compare
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.peft import adapter_modules

ALL = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
KINDS = {
    "full": {},
    "lora": ALL,
    "dora": ALL | {"use_dora": True},
    "qlora": ALL | {"quantize_base": True, "quantize_unsupported": "skip"},
    "qdora": ALL | {"quantize_base": True, "quantize_unsupported": "skip", "use_dora": True},
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request, hf_base, build, kind):
    model = build(FullModelHFCheckpointer(hf_base.dir), dtype=request.param, **KINDS[kind])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        logits = model(hf_base.tokens[:, :-1]).float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), hf_base.tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_a_right_merge_has_room_and_a_wrong_one_none(model, kind, hf_base):
    weights = merged_weights(model)
    right = compare(model, weights, hf_base.tokens)
    assert right.mean < 0.6 * right.limit

    q, k = (f"layers.1.attn.{name}_proj.weight" for name in "qk")
    value = weights[q].read().roll(1, dims=0)
    swapped = {**weights, q: replace(weights[q], read=lambda: value)}
    assert not compare(model, swapped, hf_base.tokens).explained
    if kind == "full":
        return
    for scaling in (0.0, 1.0):  # the adapter is not merged; alpha / r is forgotten
        wrong = {}
        for name, module in adapter_modules(model).items():
            was, module.scaling = module.scaling, scaling
            wrong[f"{name}.weight"] = Weight.of(module.merged_weight())
            module.scaling = was
        assert not compare(model, weights | wrong, hf_base.tokens).explained


def test_the_numbers_are_those_of_transformers(hf_base, build):
    model = build(FullModelHFCheckpointer(hf_base.dir), **ALL)
    plain = build(FullModelHFCheckpointer(hf_base.dir))
    difference = compare(model, merged_weights(plain), hf_base.tokens)
    with torch.no_grad():
        expected = (model(hf_base.tokens) - hf_base.logits).abs()
    assert difference.largest == pytest.approx(expected.max().item(), rel=1e-4)
    assert difference.mean == pytest.approx(expected.mean().item(), rel=1e-4)
    assert difference.scale == pytest.approx(hf_base.logits.square().mean().sqrt().item(), rel=1e-4)
    assert difference.num_tokens == 48
    assert str(difference) == (
        f"logits differ by at most {expected.max():.2g}, on average {expected.mean():.2g}, over 48 tokens"
    )


@pytest.mark.parametrize(("dtype", "explained"), [(torch.bfloat16, True), (torch.float32, False)])
def test_an_update_that_rounding_takes_away_is_explained(hf_base, build, dtype, explained: bool):
    """Weights are in (1, 2), where half a step of bfloat16 is 2^-8; a smaller update follows the hidden state."""
    args = {"lora_attn_modules": ["q_proj"], "apply_lora_to_output": True, "lora_rank": 1, "lora_alpha": 1}
    model = build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, **args)
    for layer in model.layers:  # the hidden state is the normed embedding
        torch.nn.init.zeros_(layer.attn.output_proj.weight)
        torch.nn.init.zeros_(layer.mlp.w2.weight)
    model.output.weight.data.uniform_(1.02, 1.98)
    model.output.lora_a.weight.data[0] = 2**-8 * model.tok_embeddings.weight[5].sign()
    torch.nn.init.constant_(model.output.lora_b.weight, 0.9)
    base = Weight.of(model.output.weight)
    assert torch.equal(model.output.merged_weight(), base.read()) == (dtype == torch.bfloat16)
    difference = compare(model, {**merged_weights(model), "output.weight": base}, torch.full((1, 8), 5))
    assert difference.explained == explained
    assert not replace(difference, rounding=0.0).explained


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_not_explained(value: float):
    assert Difference(1, 0.1, 0.1, 0.0, 1.0, 8).explained
    assert not Difference(value, value, 0.1, 0.0, 1.0, 8).explained
    assert not Difference(1, float("nan"), value, 0.0, 1.0, 8).explained


def test_mode_and_random_state_stay(hf_base, build):
    model = build(FullModelHFCheckpointer(hf_base.dir), **ALL, lora_dropout=0.5).train()
    state = torch.get_rng_state()
    first = compare(model, merged_weights(model), hf_base.tokens)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert first.explained and first == compare(model.eval(), merged_weights(model), hf_base.tokens)
    assert not model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_second_model_is_held(wide_base, peak_bytes, build, dtype):
    """On the CPU, where the mapped weight counts too; the largest tensor is the embedding."""
    checkpointer = FullModelHFCheckpointer(wide_base.write(dtype))
    model = build(checkpointer, dtype=dtype, **wide_base.adapters)
    weights = checkpointer._weights()
    rows = torch.arange(64)[None]
    compare(model, weights, rows)  # imports, tables
    assert peak_bytes(lambda: compare(model, weights, rows)) < wide_base.bound(dtype)
    held = peak_bytes(lambda: build(checkpointer, dtype=dtype)(rows))
    assert held > wide_base.bound(dtype), "this test could not fail"
