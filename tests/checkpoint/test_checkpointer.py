import copy
import json
import logging
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.checkpoint.formats.test_meta import interleave, write_meta
from torchtune_lite.checkpoint import FullModelHFCheckpointer, FullModelMetaCheckpointer, gather
from torchtune_lite.checkpoint.formats.adapter import adapter_weights
from torchtune_lite.checkpoint.formats.hf import hf_files, write_hf_config
from torchtune_lite.checkpoint.formats.safetensors_stream import fill
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import merged_weights
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.checkpoint.store.manifest import read_manifest
from torchtune_lite.errors import CheckpointError, ConfigError, SaveError
from torchtune_lite.models import llama2
from torchtune_lite.peft import LoRALinear, adapter_state, dequantize, is_quantized

LORA = {"lora_attn_modules": ["q_proj"]}


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_lora_checkpoint_keeps_the_adapter_apart(hf_base, build, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    checkpointer.save(tmp_path / "out", build(checkpointer, **LORA))
    adapter = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    small = ["MANIFEST.json", "generation_config.json", "tokenizer.model"]
    assert contents(tmp_path / "out") == sorted([*adapter, *small, "config.json", "model.safetensors"])
    checkpointer.save(tmp_path / "small", build(checkpointer, **LORA), adapter_only=True)
    assert contents(tmp_path / "small") == sorted([*adapter, *small])


def test_what_cannot_be_saved(hf_base, build, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer)
    with pytest.raises(SaveError, match="has no adapter"):
        checkpointer.save(tmp_path / "out", model, adapter_only=True)
    model.norm.weight.data[0] = float("nan")
    with pytest.raises(SaveError, match="norm.weight"):
        checkpointer.save(tmp_path / "out", model)
    assert not list(tmp_path.iterdir())
    model.norm.weight.data[0] = 1
    (tmp_path / "out").mkdir()
    with pytest.raises(SaveError, match="not overwritten"):
        checkpointer.save(tmp_path / "out", model)


def test_sizes_are_compared_field_by_field(hf_base):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    with torch.device("meta"):
        model = llama2.llama2(**{**checkpointer.decoder_args, "num_layers": 3, "norm_eps": 1e-5, "max_seq_len": 8})
    with pytest.raises(CheckpointError) as error:
        checkpointer.load(model, device="cpu", dtype=torch.float32)
    message = str(error.value)
    assert "has num_layers 2, the model has 3; norm_eps 1e-06, the model has 1e-05; use _component_: " in message
    assert "torchtune_lite.models.from_checkpoint, which takes its sizes from the checkpoint" in message
    assert all(param.is_meta for param in model.parameters())


def damaged(hf_base, folder: Path, change) -> None:
    shutil.copytree(hf_base.dir, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "1 weight is missing .lm_head.weight"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(1)}), "not the model's .*q_proj.bias"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(64)}),
            r"model.norm.weight: \(64,\), the model's is \(128,\)",
        ),
        (lambda w: w.update({"lm_head.weight": torch.ones(96, 128, dtype=torch.int8)}), "weights are int8"),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(96, 128).to(torch.float8_e4m3fn)}),
            "weights are float8_e4m3fn",
        ),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_untouched(hf_base, tmp_path: Path, change, message: str):
    damaged(hf_base, tmp_path / "base", change)
    checkpointer = FullModelHFCheckpointer(tmp_path / "base")
    with torch.device("meta"):
        model = llama2.llama2(**checkpointer.decoder_args)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpointer.load(model, device="cpu", dtype=torch.float32)
    assert "\n" not in str(error.value) and all(param.is_meta for param in model.parameters())


def test_a_truncated_file_leaves_the_model_untouched(hf_base, tmp_path: Path):
    shutil.copytree(hf_base.dir, tmp_path / "base")
    os.truncate(tmp_path / "base" / "model.safetensors", 5000)
    checkpointer = FullModelHFCheckpointer(tmp_path / "base")
    with torch.device("meta"):
        model = llama2.llama2(**checkpointer.decoder_args)
    with pytest.raises(CheckpointError, match="model.safetensors: is truncated: 5,000 of"):
        checkpointer.load(model, device="cpu", dtype=torch.float32)
    assert all(param.is_meta for param in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"checkpoint_dir": "absent"}, CheckpointError, "checkpoint_dir 'absent' is not a folder$"),
        ({"checkpoint_dir": "Qwen/Qwen3-4B"}, CheckpointError, "not a folder; 'tune download Qwen/Qwen3-4B' makes one"),
        ({"checkpoint_dir": ""}, CheckpointError, "checkpoint_dir '' is not a folder"),
        ({"model_type": "LAMA2"}, ConfigError, "model_type: 'LAMA2' is unknown; allowed are llama, "),
        ({"model_type": "LLAMA4"}, ConfigError, "model_type: LLAMA4 is a family that is not served: it sees"),
        (
            {"model_type": "QWEN3"},
            CheckpointError,
            "is of a 'llama' model, not of qwen3; leave checkpointer.model_type",
        ),
        ({"recipe_checkpoint": "recipe_state.pt"}, ConfigError, "resume_from_checkpoint"),
        ({"checkpoint_files": ["no.safetensors"]}, CheckpointError, "no.safetensors"),
        ({"output_dir": "."}, ConfigError, "output_dir . is checkpoint_dir"),
        ({"merge_into": "base"}, ConfigError, "merge_into 'base' is unknown; allowed are quantized, original"),
    ],
)
def test_arguments_that_cannot_work(hf_base, monkeypatch, arguments: dict, error: type, message: str):
    monkeypatch.chdir(hf_base.dir)
    with pytest.raises(error, match=message):
        FullModelHFCheckpointer(**{"checkpoint_dir": hf_base.dir, **arguments})


def test_saved_folders_can_be_trained_on(hf_base, build, logits, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, **LORA)
    checkpointer.save(tmp_path / "one", model)
    again = FullModelHFCheckpointer(tmp_path / "one", output_dir=tmp_path / "run")
    merged = build(again)
    again.save(tmp_path / "two", merged)
    torch.testing.assert_close(logits(merged, hf_base.tokens), logits(model, hf_base.tokens), rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["dtype"] == "float32"


QLORA = {
    "lora_attn_modules": ["q_proj"],
    "quantize_base": True,
    "quantize_frozen": True,
    "quantize_unsupported": "skip",
}


@pytest.fixture(params=["hf", "meta"])
def make_checkpointer(request, hf_base, tmp_path: Path):
    """Make a checkpointer of the base in either layout."""
    if request.param == "hf":
        return partial(FullModelHFCheckpointer, hf_base.dir)
    return partial(FullModelMetaCheckpointer, write_meta(tmp_path / "meta", hf_base), model_type="LLAMA2")


def test_a_save_merges_into_what_it_is_told_to(make_checkpointer, hf_base, build, tmp_path: Path, caplog):
    saved = {}
    for kind in ("quantized", "original"):
        checkpointer = make_checkpointer(merge_into=kind)
        model = build(checkpointer, **QLORA)
        with caplog.at_level(logging.INFO):
            checkpointer.save(tmp_path / kind, model, verify=True)
        saved[kind] = load_file(tmp_path / kind / "model.safetensors")
        assert ("NF4 values in training" in caplog.messages[-1]) == (kind == "original")
        assert "21 weights are as they were trained, 2 of them with an adapter merged in" in caplog.messages[-1]
        live = model(hf_base.tokens)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / kind)(hf_base.tokens).logits
        assert ((theirs - live).abs().mean() < 1e-4) == (kind == "quantized")

    base = load_file(hf_base.dir / "model.safetensors")
    layer = "model.layers.0."
    query, up = f"{layer}self_attn.q_proj.weight", f"{layer}mlp.up_proj.weight"
    module = model.layers[0].attn.q_proj
    assert is_quantized(module.weight) and is_quantized(model.layers[0].mlp.w3.weight)
    update = module.merged_weight() - dequantize(module.weight)
    torch.testing.assert_close(saved["original"][query], base[query] + update)
    assert torch.equal(saved["original"][up], base[up]) and not torch.equal(saved["quantized"][up], base[up])
    assert torch.equal(saved["quantized"][up], dequantize(model.layers[0].mlp.w3.weight))


def test_a_save_that_does_not_merge_is_refused(make_checkpointer, build, tmp_path: Path, monkeypatch, caplog):
    checkpointer = make_checkpointer()
    model = build(checkpointer, **LORA, dtype=torch.bfloat16)

    def unmerged(self, base=None):
        return self.weight if base is None else base

    monkeypatch.setattr(LoRALinear, "merged_weight", unmerged)
    with pytest.raises(SaveError, match="not the model that was trained: 2 of 21 weights are wrong: .*q_proj") as error:
        checkpointer.save(tmp_path / "out", model, verify=True)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*out*"))
    checkpointer.save(tmp_path / "unchecked", model)
    assert not any("verified" in message for message in caplog.messages)


SPOILT = {
    "a weight left out": lambda weights, config: (
        {n: w for n, w in weights.items() if n != "model.norm.weight"},
        config,
    ),
    "another dtype": lambda weights, config: (
        weights | {"model.norm.weight": Weight.of(weights["model.norm.weight"].read().to(torch.float16))},
        config,
    ),
    "permuted": lambda weights, config: (
        weights | {QUERY: Weight.of(interleave(weights[QUERY].read(), 4))},
        config,
    ),
    "another epsilon": lambda weights, config: (weights, config | {"rms_norm_eps": 1e-3}),
    "another rotary base": lambda weights, config: (
        weights,
        config | {"rope_theta": 10_000.0, "rope_parameters": None},
    ),
    "other heads": lambda weights, config: (weights, config | {"num_attention_heads": 8, "num_key_value_heads": 4}),
}
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("adapters", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_folder_that_is_not_the_model_is_refused(
    make_checkpointer, build, tmp_path: Path, monkeypatch, spoil: str, adapters: dict
):
    def spoilt_files(folder, weights, shard_of=None):
        return hf_files(folder, SPOILT[spoil](dict(weights), {})[0], shard_of)

    def spoilt_config(folder, files, config):
        [weights, *_] = files.values()
        write_hf_config(folder, files, SPOILT[spoil](dict(weights), dict(config))[1])

    for layout in ("hf", "meta"):
        monkeypatch.setattr(f"torchtune_lite.checkpoint.formats.{layout}.hf_files", spoilt_files)
        monkeypatch.setattr(f"torchtune_lite.checkpoint.formats.{layout}.write_hf_config", spoilt_config)
    checkpointer = make_checkpointer()
    before = list(tmp_path.iterdir())
    with pytest.raises(SaveError, match="was written is not the model that was trained: ") as error:
        checkpointer.save(tmp_path / "out", build(checkpointer, **adapters), verify=True)
    assert ".tmp" not in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", "is truncated"),
        ("adapter/adapter_model.safetensors", "is truncated"),
        ("adapter/adapter_config.json", "is not JSON"),
    ],
)
def test_a_file_that_is_cut_off_is_refused(hf_base, build, tmp_path: Path, monkeypatch, name: str, damage: str):
    checkpointer = FullModelMetaCheckpointer(write_meta(tmp_path / "meta", hf_base), model_type="LLAMA2")

    def fill_and_cut(files, **how):
        fill(files, **how)
        file = tmp_path / next(iter(files)).parent.parent.name / name
        os.truncate(file, file.stat().st_size // 2)

    monkeypatch.setattr("torchtune_lite.checkpoint.draft.fill", fill_and_cut)
    with pytest.raises(SaveError, match=f"{Path(name).name}: {damage}"):
        checkpointer.save(tmp_path / "out", build(checkpointer, **LORA), verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapter_only", [True, False])
def test_an_adapter_that_is_not_the_live_one_is_refused(
    hf_base, build, tmp_path: Path, monkeypatch, caplog, adapter_only: bool
):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, **LORA)
    other = copy.deepcopy(model)
    adapter_state(other)["layers.1.attn.q_proj.lora_b.weight"].data[3, 2] += 1e-6
    monkeypatch.setattr(
        "torchtune_lite.checkpoint.checkpointer.adapter_weights", lambda model, layout: adapter_weights(other, layout)
    )
    with pytest.raises(SaveError, match="differs from the live one in .*layers.1.self_attn.q_proj.lora_B.weight;"):
        checkpointer.save(tmp_path / "out", model, adapter_only=adapter_only, verify=True)
    with caplog.at_level(logging.INFO):
        checkpointer.save(tmp_path / "step_7", other, adapter_only=adapter_only, verify=True)
    expected = "the adapter is as it was trained" if adapter_only else "21 weights are as they were trained, 2 of them"
    assert expected in caplog.messages[-1] and re.match(r"verified step_7 in \d", caplog.messages[-1])


@pytest.mark.parametrize("merge_into", ["quantized", "original"])
def test_a_save_holds_two_tensors_beside_the_model(wide_base, build, peak_bytes, tmp_path: Path, merge_into: str):
    checkpointer = FullModelHFCheckpointer(wide_base.write(torch.bfloat16), merge_into=merge_into)
    model = build(checkpointer, dtype=torch.bfloat16, **wide_base.adapters)
    bound = wide_base.bound(torch.bfloat16)
    checkpointer.save(tmp_path / "step_1", model, verify=True)  # imports, tables
    peak = peak_bytes(lambda: checkpointer.save(tmp_path / "step_2", model, verify=True))
    assert peak < bound
    whole = peak_bytes(lambda: {name: weight.read().clone() for name, weight in merged_weights(model).items()})
    assert whole > bound, "this test could not fail"

    checkpointer.save(tmp_path / "step_3", model, adapter_only=True)
    size = sum(file.stat().st_size for file in (tmp_path / "step_3").rglob("*"))
    adapter = sum(p.numel() * p.itemsize for p in model.parameters() if p.requires_grad)
    assert adapter < size < adapter + 40_000


@pytest.mark.parametrize("adapter_only", [False, True])
def test_a_save_asks_for_its_space_first_and_names_its_step(
    make_checkpointer, build, tmp_path: Path, monkeypatch, adapter_only: bool
):
    checkpointer = make_checkpointer()
    model = build(checkpointer, **LORA)
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad])
    sum(param.sum() for param in model.parameters() if param.requires_grad).backward()
    optimizer.step()
    state = gather(model, optimizer, None, {"global_step": 7})
    checkpointer.save(tmp_path / "step_7", model, adapter_only=adapter_only, state=state)
    assert read_manifest(tmp_path / "step_7").step == 7

    written = sum(path.stat().st_size for path in (tmp_path / "step_7").rglob("*"))
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 0)
    with pytest.raises(SaveError, match="step_8 was not saved: it needs .* MB, 0.0 MB are free") as error:
        checkpointer.save(tmp_path / "step_8", model, adapter_only=adapter_only, state=state)
    asked = float(str(error.value).partition(" MB")[0].rpartition(" ")[2]) * 1e6
    assert asked <= written < asked + 150_000  # JSON, headers, the folders themselves
