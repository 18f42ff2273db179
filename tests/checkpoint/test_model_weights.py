from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors, write_safetensors
from torchtune_lite.checkpoint.formats.torch_stream import read_torch
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import (
    check_finite,
    check_weights,
    listed,
    load_weights,
    merged_weights,
)
from torchtune_lite.errors import CheckpointError, SaveError
from torchtune_lite.peft import LoRALinear, is_quantized, num_bytes


def test_some_shortens_a_list():
    assert listed("abc") == "a, b, c" and listed("abcde") == "a, b, c and 2 more"


def test_every_misfit_is_in_one_line():
    model = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(1)}
    given = {"b": Weight.of(torch.zeros(3, 2)), "c": Weight.of(torch.zeros(1, dtype=torch.int8)), "d": model["a"]}
    given["d"] = Weight.of(torch.zeros(1))
    with pytest.raises(CheckpointError) as error:
        check_weights(model, given, "x")
    assert str(error.value) == (
        "x does not fit: 1 weight is missing (a); 1 is not the model's (d); 1 has another shape (b: (3, 2), the "
        "model's is (2, 3)); weights are int8 (a quantised export?); load an fp32, bf16 or fp16 checkpoint"
    )


def test_a_meta_model_is_filled_cast_and_quantised():
    with torch.device("meta"):
        model = nn.Sequential(LoRALinear(128, 128, 2, 4, quantize_base=True), nn.Linear(128, 4))
    model[1].bias.requires_grad_(False)
    weights = {"0.weight": torch.randn(128, 128), "1.weight": torch.randn(4, 128), "1.bias": torch.randn(4)}
    load_weights(model, {n: Weight.of(t) for n, t in weights.items()}, device="cpu", dtype=torch.bfloat16, source="x")
    assert is_quantized(model[0].weight) and not model[0].weight.is_meta and model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[1].weight, weights["1.weight"].bfloat16())
    assert (model[0].weight.requires_grad, model[1].weight.requires_grad, model[1].bias.requires_grad) == (
        False,
        True,
        False,
    )
    assert model[0].lora_a.weight.is_meta  # the adapter is not the base's


def test_a_filled_model_shares_nothing_with_the_file():
    source, model = torch.ones(2, 2), nn.Linear(2, 2, bias=False, device="meta")
    load_weights(model, {"weight": Weight.of(source)}, device="cpu", dtype=torch.float32, source="x")
    source.zero_()
    assert model.weight.sum() == 4


def test_an_existing_parameter_is_filled_in_place():
    model, source = nn.Linear(2, 2, bias=False), torch.ones(2, 2)
    param = model.weight
    load_weights(model, {"weight": Weight.of(source)}, device="cpu", dtype=torch.float32, source="x")
    assert model.weight is param and torch.equal(param, source)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_a_broken_base_weight_is_named(name: str, value: float):
    with torch.device("meta"):
        model = nn.Sequential(LoRALinear(128, 128, 2, 4, quantize_base=True), nn.Linear(128, 4, bias=False))
    weights = {"0.weight": torch.randn(128, 128), "1.weight": torch.randn(4, 128)}
    weights[name][-1, -1] = value
    with pytest.raises(CheckpointError, match=f"base: {name} holds NaN or infinity"):
        load_weights(
            model, {n: Weight.of(t) for n, t in weights.items()}, device="cpu", dtype=torch.bfloat16, source="base"
        )


def save_torch(path: Path, weights: dict[str, Weight]) -> None:
    torch.save({name: weight.read() for name, weight in weights.items()}, path)


@pytest.mark.parametrize(("reads", "writes"), [(read_safetensors, write_safetensors), (read_torch, save_torch)])
def test_loading_holds_two_tensors_beside_the_model(tmp_path: Path, peak_bytes, reads, writes):
    num, shape = 4, (4096, 5120)  # large enough for malloc to give each back to the system
    size = 2 * shape[0] * shape[1]  # in bfloat16
    path = tmp_path / "x"
    writes(path, {f"{i}.weight": Weight(torch.float32, shape, lambda: torch.ones(shape)) for i in range(num)})
    mapped = 2 * size if reads is read_safetensors else path.stat().st_size  # torch.load maps its file to the end

    def peak(weights: dict[str, Weight]) -> int:
        with torch.device("meta"):
            model = nn.Sequential(*(LoRALinear(shape[1], shape[0], 1, 1, quantize_base=True) for _ in range(num)))
        return peak_bytes(lambda: load_weights(model, weights, device="cpu", dtype=torch.bfloat16, source=path)) - sum(
            num_bytes(layer.weight) for layer in model
        )

    held = []

    def kept(weight: Weight) -> Weight:
        return replace(weight, read=lambda: held.append(weight.read().bfloat16()) or held[-1])

    bound = mapped + 2 * size + 8_000_000
    peak(reads(path))  # imports, tables
    assert peak(reads(path)) < bound
    assert peak({name: kept(weight) for name, weight in reads(path).items()}) > bound, "this test could not fail"


def test_merged_weights_are_computed_when_read():
    model = nn.Sequential(LoRALinear(4, 3, 2, 6), nn.Linear(3, 2, bias=False))
    weights = merged_weights(model)
    nn.init.ones_(model[0].lora_b.weight)
    expected = model[0].weight + 3 * model[0].lora_b.weight @ model[0].lora_a.weight
    assert weights.keys() == {"0.weight", "1.weight"}
    torch.testing.assert_close(weights["0.weight"].read(), expected)
    assert torch.equal(weights["1.weight"].read(), model[1].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_trained_weights_are_not_saved(value: float):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).bfloat16()
    check_finite(model)
    model[1].weight.data[1, 1] = value
    with pytest.raises(SaveError, match="1 trained weight is NaN or infinite .1.weight"):
        check_finite(model)
    model.requires_grad_(False)
    check_finite(model)
