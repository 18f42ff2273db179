"""The check of a written model against the live one: a right one passes, and each planted fault fails."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoint.formats.test_meta import interleave
from torchtune_lite.checkpoint import FullModelHFCheckpointer, verification
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import merged_weights
from torchtune_lite.checkpoint.verification import compare
from torchtune_lite.errors import CheckpointError
from torchtune_lite.peft import DoRALinear, LoRALinear, adapter_modules, dequantize

ALL = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
KINDS = {
    "full": {},
    "lora": ALL,
    "dora": ALL | {"use_dora": True},
    "qlora": ALL | {"quantize_base": True, "quantize_unsupported": "skip"},
    "qdora": ALL | {"quantize_base": True, "quantize_unsupported": "skip", "use_dora": True},
}
Q, K, V, OUT = (f"layers.1.attn.{name}_proj.weight" for name in ("q", "k", "v", "output"))
W1, W3, NORM, EMBEDDING = "layers.1.mlp.w1.weight", "layers.1.mlp.w3.weight", "norm.weight", "tok_embeddings.weight"


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def model(hf_base, build, kind, dtype):
    return trained(build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, **KINDS[kind]), hf_base.tokens)


def trained(model: nn.Module, tokens: Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        logits = model(tokens[:, :-1]).float()
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def written(model: nn.Module) -> dict[str, Weight]:
    """The weights that a save would read back."""
    return {name: Weight.of(weight.read().clone()) for name, weight in merged_weights(model).items()}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Weight]], dict[str, Weight]]:
    return lambda weights: {name: Weight.of(change(weights[name].read().clone()))}


def exchanged(first: str, second: str) -> Callable[[dict[str, Weight]], dict[str, Weight]]:
    return lambda weights: {first: weights[second], second: weights[first]}


def one_value(weight: Tensor) -> Tensor:
    """Change a value of usual size by four steps of its dtype, or in float32 by the least that a check can detect."""
    at = weight.abs().flatten().argsort()[weight.numel() // 2]
    by = 4e-6 * weight.abs().max() if weight.dtype == torch.float32 else 4 * 2**-8 * weight.flatten()[at].abs()
    weight.view(-1)[at] += by
    return weight


FAULTS = {
    "rows rolled": changed(Q, lambda weight: weight.roll(1, dims=0)),
    "transposed": changed(OUT, lambda weight: weight.t().contiguous()),
    "permuted to Meta's layout": changed(Q, lambda weight: interleave(weight, 4)),
    "k and v exchanged": exchanged(K, V),
    "w1 and w3 exchanged": exchanged(W1, W3),
    "in another layer": lambda weights: {W1: weights[W1.replace("1", "0", 1)]},
    "zeroed": changed(W3, torch.zeros_like),
    "one value": changed(K, one_value),
    "one value of the embedding": changed(EMBEDDING, one_value),
    "one value of a norm": changed(NORM, one_value),
    "two rows of the embedding exchanged": changed(EMBEDDING, lambda weight: weight[[1, 0, *range(2, len(weight))]]),
    "a negated row": changed(W1, lambda weight: weight.index_copy(0, torch.tensor([7]), -weight[7:8])),
    "not a number": changed(V, lambda weight: weight.index_fill(0, torch.tensor([7]), float("nan"))),
    "another dtype": changed(Q, lambda weight: weight.to(torch.float16)),
}


def test_what_is_right_passes_and_any_fault_in_the_file_is_named(model):
    weights = written(model)
    assert compare(model, weights).num_weights == len(weights)
    for fault, spoil in FAULTS.items():
        wrong = spoil(weights)
        with pytest.raises(CheckpointError) as error:
            compare(model, weights | wrong)
        are = "is" if len(wrong) == 1 else "are"
        assert f"{len(wrong)} of {len(weights)} weights {are} wrong" in str(error.value), fault
        assert all(name in str(error.value) for name in wrong), fault


def test_a_file_of_an_earlier_save_is_seen(hf_base, build, dtype):
    for adapters in KINDS.values():
        model = build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, **adapters)
        stale = written(model)
        compare(model, stale)
        with pytest.raises(CheckpointError, match="weights are wrong"):
            compare(trained(model, hf_base.tokens), stale)


def test_an_adapter_that_was_not_merged_or_not_scaled_is_seen(model, kind):
    weights = written(model)
    for scaling in (0.0, 1.0):
        wrong = {}
        for name, module in adapter_modules(model).items():
            was, module.scaling = module.scaling, scaling
            wrong[f"{name}.weight"] = Weight.of(module.merged_weight())
            module.scaling = was
        if kind != "full":
            with pytest.raises(CheckpointError, match=f"{len(wrong)} of {len(weights)} weights are wrong"):
                compare(model, weights | wrong)


def tiles(change: Callable[[LoRALinear, Tensor], Tensor]):
    """A `merged_tiles` that applies `change` to the module and its base."""

    def merged_tiles(self, base=None):
        yield slice(None), change(self, dequantize(self.weight if base is None else base).float())

    return merged_tiles


def update(module: LoRALinear) -> Tensor:
    return module.lora_b.weight.float() @ module.lora_a.weight.float()


def normed(module: LoRALinear, merged: Tensor) -> Tensor:
    if isinstance(module, DoRALinear):
        return merged * (module.magnitude.float() / merged.norm(dim=1))[:, None]
    return merged


FORMULAS = {
    "not merged": lambda module, base: base,
    "alpha / r forgotten": lambda module, base: normed(module, base + update(module)),
    "scaled by alpha / sqrt(r)": lambda module, base: normed(
        module, base + module.alpha / module.rank**0.5 * update(module)
    ),
    "subtracted": lambda module, base: normed(module, base - module.scaling * update(module)),
    "ranks exchanged": lambda module, base: normed(
        module, base + module.scaling * module.lora_b.weight.float().flip(1) @ module.lora_a.weight.float()
    ),
    "update transposed": lambda module, base: normed(
        module, base + module.scaling * (update(module).t() if base.shape[0] == base.shape[1] else update(module))
    ),
    "magnitude as a factor": lambda module, base: (
        (base + module.scaling * update(module))
        * getattr(module, "magnitude", base.new_tensor([1.001])).float()[:, None]
    ),
}
RIGHT = {"right": lambda module, base: normed(module, base + module.scaling * update(module))}
MAGNITUDE = {"magnitude forgotten": lambda module, base: base + module.scaling * update(module)}


@pytest.mark.parametrize("adapters", [KINDS["lora"], KINDS["qdora"]], ids=["lora", "qdora"])
def test_a_wrong_merge_that_was_written_as_it_was_computed_is_seen(hf_base, build, dtype, adapters, monkeypatch):
    """The file then agrees with the merge; only the forward pass shows the fault."""
    model = build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, **adapters)
    model = trained(model, hf_base.tokens)
    faults = FORMULAS | (MAGNITUDE if adapters.get("use_dora") else {})
    for fault, formula in (RIGHT | faults).items():
        for kind in (LoRALinear, DoRALinear):
            monkeypatch.setattr(kind, "merged_tiles", tiles(formula))
        weights = written(model)
        if fault == "right":
            compare(model, weights)
            continue
        with pytest.raises(CheckpointError, match="was merged into a function other than the trained one") as error:
            compare(model, weights)
        assert str(len(adapter_modules(model)) if fault != "update transposed" else 4) in str(error.value), fault


def test_a_small_update_is_seen_to_be_missing(hf_base, build, dtype, monkeypatch):
    """A ten-thousandth of the weight, far below a step of bfloat16, in which the file is the same without it."""
    model = build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, **ALL)
    for module in adapter_modules(model).values():
        size = (module.scaling * update(module)).norm() / module.weight.float().norm()
        module.lora_b.weight.data *= 1e-4 / size
    compare(model, written(model))
    monkeypatch.setattr(LoRALinear, "merged_tiles", tiles(FORMULAS["not merged"]))
    with pytest.raises(CheckpointError, match=r"differ by 0.01%"):
        compare(model, written(model))


@pytest.mark.parametrize(("dtype", "explained"), [(torch.bfloat16, True), (torch.float32, False)])
def test_an_update_that_rounding_takes_away_is_explained(hf_base, build, dtype, explained: bool):
    model = build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, lora_attn_modules=["q_proj"], lora_rank=1)
    for module in adapter_modules(model).values():
        module.weight.data.uniform_(1.02, 1.98)  # where half a step of bfloat16 is 2^-8
        module.lora_a.weight.data.fill_(0.9 * 2**-8 / module.scaling)
        nn.init.ones_(module.lora_b.weight)
    base = {f"{name}.weight": Weight.of(module.weight.data) for name, module in adapter_modules(model).items()}
    if explained:
        compare(model, written(model) | base)
    else:
        with pytest.raises(CheckpointError, match="2 of 21 weights are wrong"):
            compare(model, written(model) | base)


def test_what_is_merged_into_the_original_weights_is_compared_with_those(hf_base, build):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    adapters = {"lora_attn_modules": ["q_proj"], "quantize_base": True, "quantize_frozen": True}
    model = build(checkpointer, **adapters, quantize_unsupported="skip", lora_alpha=0.0)
    originals = checkpointer._weights()
    weights = {name: Weight.of(weight.read()) for name, weight in merged_weights(model, originals).items()}
    comparison = compare(model, weights, originals)

    theirs, ours = ([w[name].read() for name in originals] for w in (originals, written(model)))
    off = sum((a - b).square().sum() for a, b in zip(theirs, ours, strict=True))
    quantised = sum(a.square().sum() for a, b in zip(theirs, ours, strict=True) if not torch.equal(a, b))
    assert comparison.base_error == pytest.approx((off / quantised).sqrt().item(), rel=1e-4)
    assert 0.05 < comparison.base_error < 0.15
    for wrong in ({Q: written(model)[Q]}, {W1: weights[W3]}):
        with pytest.raises(CheckpointError, match="1 of 21 weights is wrong"):
            compare(model, weights | wrong, originals)
    assert compare(model, written(model)).base_error is None


def test_a_weight_is_read_once_and_its_module_applied_to_a_few_vectors(hf_base, build, monkeypatch):
    model = build(FullModelHFCheckpointer(hf_base.dir), **ALL)
    reads, rows = [], []
    weights = {
        name: replace(weight, read=lambda weight=weight, name=name: (reads.append(name), weight.read())[1])
        for name, weight in written(model).items()
    }
    monkeypatch.setattr(model, "forward", lambda *args: pytest.fail("the model is not run"))
    for module in adapter_modules(model).values():
        module.register_forward_hook(lambda module, args, y: rows.append(len(y)))
    compare(model, weights)
    assert sorted(reads) == sorted(weights)
    assert rows == [verification.NUM_PROBES] * len(adapter_modules(model))


def test_mode_random_state_and_weights_stay(hf_base, build, dtype):
    model = build(FullModelHFCheckpointer(hf_base.dir), dtype=dtype, **ALL, lora_dropout=0.5).train()
    state, before = torch.get_rng_state(), {name: param.clone() for name, param in model.named_parameters()}
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    compare(model, written(model))
    assert modes == [module.training for module in model.modules()] and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], param) for name, param in model.named_parameters())
    assert all(param.dtype == dtype for param in model.parameters())


@pytest.mark.parametrize(("precision", "told_apart"), [("highest", True), ("high", False)])
def test_a_faster_arithmetic_for_float32_is_reckoned_with(hf_base, build, monkeypatch, precision, told_apart):
    model = build(FullModelHFCheckpointer(hf_base.dir), **ALL)
    weights, forward = written(model), LoRALinear.forward
    monkeypatch.setattr(LoRALinear, "forward", lambda self, x: forward(self, x) * (1 + 2**-10))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        if told_apart:
            with pytest.raises(CheckpointError, match=r"differ by 0.10%"):
                compare(model, weights)
        else:
            compare(model, weights)
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_second_model_is_held(wide_base, peak_bytes, build):
    """On the CPU, where the mapped weight counts too; the largest tensor is the embedding."""
    checkpointer, bound = FullModelHFCheckpointer(wide_base.write(torch.bfloat16)), wide_base.bound(torch.bfloat16)
    model = build(checkpointer, dtype=torch.bfloat16, **wide_base.adapters)
    weights = merged_weights(model)
    compare(model, weights)  # imports, tables
    assert peak_bytes(lambda: compare(model, weights)) < bound
    assert peak_bytes(lambda: written(model)) > bound, "this test could not fail"
