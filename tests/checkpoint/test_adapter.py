import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from torchtune_lite.checkpoint import FullModelHFCheckpointer, load_adapter, write_adapter
from torchtune_lite.checkpoint.adapter import CONFIG, WEIGHTS, adapter_config
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models.llama2 import LLAMA2
from torchtune_lite.peft import adapter_state, dequantize

QK = {"lora_attn_modules": ["q_proj", "k_proj"], "lora_rank": 4, "lora_alpha": 12}


def base_model(hf_base):
    return AutoModelForCausalLM.from_pretrained(hf_base.dir, dtype=torch.float32)


@pytest.mark.parametrize(
    "adapters",
    [
        QK,
        QK | {"use_dora": True},
        QK | {"apply_lora_to_mlp": True, "apply_lora_to_output": True},
        {"lora_attn_modules": ["v_proj", "output_proj"], "use_dora": True, "apply_lora_to_mlp": True},
    ],
)
def test_peft_gives_the_live_logits_from_our_adapter(hf_base, build, logits, tmp_path: Path, adapters: dict):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, **adapters)
    checkpointer.save(tmp_path / "out", model, adapter_only=True)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base_model(hf_base), tmp_path / "out" / "adapter")(hf_base.tokens).logits
    live = logits(model, hf_base.tokens)
    torch.testing.assert_close(theirs, live, rtol=0, atol=1e-4)
    assert (live - hf_base.logits).abs().max() > 0.1


@pytest.fixture
def peft_adapter(hf_base, tmp_path: Path):
    """Writes an adapter with PEFT, its values not zero; gives the folder and PEFT's logits."""

    def write(**options):
        torch.manual_seed(2)
        model = get_peft_model(base_model(hf_base), LoraConfig(**{"r": 4, "lora_alpha": 12} | options)).eval()
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "lora_" in name:
                    param += 0.1 * torch.randn_like(param)
            logits = model(hf_base.tokens).logits
        model.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", logits

    return write


@pytest.mark.parametrize(
    ("options", "adapters"),
    [
        ({"target_modules": ["q_proj", "k_proj"]}, QK),
        ({"target_modules": ["q_proj", "k_proj"], "use_dora": True}, QK | {"use_dora": True}),
        ({"target_modules": ["q_proj", "k_proj"], "use_rslora": True, "lora_alpha": 6}, QK),  # 6 / sqrt(4) = 12 / 4
    ],
)
def test_an_adapter_of_peft_gives_its_logits(hf_base, build, logits, peft_adapter, options: dict, adapters: dict):
    folder, expected = peft_adapter(**options)
    model = build(FullModelHFCheckpointer(hf_base.dir), **adapters)
    load_adapter(model, folder, LLAMA2)
    torch.testing.assert_close(logits(model, hf_base.tokens), expected, rtol=0, atol=1e-4)


def test_adapter_checkpoint_is_loaded_onto_the_base(hf_base, build, tmp_path: Path):
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    write_adapter(tmp_path / "adapter", model, LLAMA2, hf_base.dir)
    for given in (tmp_path / "adapter", tmp_path / "adapter" / WEIGHTS):
        again = build(FullModelHFCheckpointer(hf_base.dir), **QK)
        FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=given).load(again, device="cpu", dtype=torch.float32)
        assert all(torch.equal(value, adapter_state(again)[name]) for name, value in adapter_state(model).items())


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("quantize_base", [False, True])
def test_float32_adapters_over_bfloat16_go_to_peft_and_back(
    hf_base, build, logits, tmp_path: Path, use_dora: bool, quantize_base: bool
):
    adapters = {"lora_attn_modules": ["q_proj"], "use_dora": use_dora, "quantize_base": quantize_base}
    adapters |= {"dtype": torch.bfloat16, "adapter_dtype": torch.float32}
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, **adapters)
    for value in adapter_state(model).values():
        value.data += 1e-4  # what bfloat16 would not keep
    checkpointer.save(tmp_path / "out", model, verify=True)
    assert {w.dtype for w in load_file(tmp_path / "out" / "adapter" / WEIGHTS).values()} == {torch.float32}
    assert {w.dtype for w in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"

    base = AutoModelForCausalLM.from_pretrained(hf_base.dir, dtype=torch.bfloat16)
    if quantize_base:
        for layer, ours in zip(base.model.layers, model.layers, strict=True):
            layer.self_attn.q_proj.weight.data = dequantize(ours.attn.q_proj.weight.data)
    theirs = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    assert next(p for name, p in theirs.named_parameters() if "lora_A" in name).dtype == torch.float32
    with torch.no_grad():
        difference = (theirs(hf_base.tokens).logits - logits(model, hf_base.tokens)).float()
    assert difference.abs().mean() < 0.05
    theirs.save_pretrained(tmp_path / "theirs")
    again = build(checkpointer, **adapters)
    load_adapter(again, tmp_path / "theirs", LLAMA2)
    assert all(torch.equal(value, adapter_state(again)[name]) for name, value in adapter_state(model).items())
    assert {value.dtype for value in adapter_state(again).values()} == {torch.float32}


def test_config_is_what_peft_needs(hf_base, build):
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK, lora_dropout=0.1)
    config = adapter_config(model, LLAMA2, hf_base.dir)
    assert LoraConfig(**{k: v for k, v in config.items() if k != "peft_type"}).peft_type == config["peft_type"]
    expected = {
        "base_model_name_or_path": str(hf_base.dir),
        "r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.1,
        "target_modules": ["k_proj", "q_proj"],
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
    }
    assert {key: config[key] for key in expected} == expected


def test_modules_that_differ_are_described_one_by_one(hf_base, build, logits, tmp_path: Path):
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    small = build(FullModelHFCheckpointer(hf_base.dir), lora_attn_modules=["q_proj"], lora_rank=2, lora_alpha=7)
    plain = build(FullModelHFCheckpointer(hf_base.dir))
    model.layers[0].attn.q_proj = small.layers[0].attn.q_proj
    model.layers[0].attn.k_proj = plain.layers[0].attn.k_proj
    write_adapter(tmp_path / "adapter", model, LLAMA2, hf_base.dir)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 2}
    assert config["alpha_pattern"] == {"model.layers.0.self_attn.q_proj": 7}
    assert "model.layers.0.self_attn.k_proj" not in config["target_modules"] and len(config["target_modules"]) == 3
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base_model(hf_base), tmp_path / "adapter")(hf_base.tokens).logits
    torch.testing.assert_close(theirs, logits(model, hf_base.tokens), rtol=0, atol=1e-4)
    load_adapter(model, tmp_path / "adapter", LLAMA2)


@pytest.mark.parametrize(
    ("adapters", "messages"),
    [
        (QK | {"lora_rank": 8}, ["r is 4, the model's is 8"]),
        (QK | {"lora_alpha": 16}, ["lora_alpha is 12, the model's is 16"]),
        (
            QK | {"use_dora": True, "lora_rank": 2},
            ["use_dora is False, the model's is True", "r is 4, the model's is 2"],
        ),
        (
            QK | {"lora_attn_modules": ["q_proj", "v_proj"]},
            ["4 weights are missing", "v_proj", "4 are not the model's"],
        ),
        ({}, ["the model has no adapter"]),
    ],
)
def test_every_misfit_is_listed_and_nothing_loaded(hf_base, build, peft_adapter, adapters: dict, messages: list[str]):
    folder, _ = peft_adapter(target_modules=["q_proj", "k_proj"])
    model = build(FullModelHFCheckpointer(hf_base.dir), **adapters)
    before = {name: value.clone() for name, value in adapter_state(model).items()}
    with pytest.raises(CheckpointError, match="does not fit") as error:
        load_adapter(model, folder, LLAMA2)
    assert all(message in str(error.value) for message in messages) and "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in adapter_state(model).items())


def test_options_that_change_the_function_are_refused(hf_base, build, peft_adapter):
    folder, _ = peft_adapter(target_modules=["q_proj", "k_proj"])
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    config = json.loads((folder / CONFIG).read_text())
    for key, value in (("bias", "all"), ("modules_to_save", ["lm_head"]), ("peft_type", "IA3")):
        (folder / CONFIG).write_text(json.dumps(config | {key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is"):
            load_adapter(model, folder, LLAMA2)


def test_a_damaged_adapter_is_named(hf_base, build, peft_adapter, tmp_path: Path):
    folder, _ = peft_adapter(target_modules=["q_proj", "k_proj"])
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name][:2].clone()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lora_A.weight: \(2, 128\), the model's is \(4, 128\)"):
        load_adapter(model, folder, LLAMA2)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"has no {WEIGHTS}"):
        load_adapter(model, folder, LLAMA2)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="adapter_config.json does not exist"):
        load_adapter(model, folder, LLAMA2)
