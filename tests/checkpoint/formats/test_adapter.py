import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.models import tiny
from torchtune_lite.checkpoint import FullModelHFCheckpointer, load_adapter, put_saved_adapters, write_adapter
from torchtune_lite.checkpoint.formats import safetensors_stream
from torchtune_lite.checkpoint.formats.adapter import CONFIG, WEIGHTS, _is_same, peft_config
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.models import from_checkpoint, llama2
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.peft import IA3, AdaLoRA, VeRA, adapter_state, dequantize, is_quantized, quantize

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
        QK | {"use_rslora": True},
        {"target_modules": ["o_proj", "down_proj"], "rank_pattern": {"down_proj": 2}, "layers_to_transform": 1},
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {r"layers\.0\..*": 3}, "lora_alpha": 5}
        | {"alpha_pattern": {"v_proj": 9}},
        QK | {"init_lora_weights": "pissa"},
        QK | {"init_lora_weights": "olora", "use_rslora": True, "rank_pattern": {"k_proj": 3}},
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "adapter": IA3()},
        {"target_modules": ["v_proj", "w2"], "layers_to_transform": 1, "adapter": IA3(["w2"])},
        {"target_modules": "all-linear", "adapter": VeRA(r=16, projection_prng_key=7)},
        {"target_modules": ["k_proj", "w1"], "adapter": AdaLoRA(init_r=6, target_r=2, lora_alpha=90)},
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
    """Write an adapter with PEFT, its values not zero; return the folder and PEFT's logits."""

    def write(config=None, **options):
        torch.manual_seed(2)
        config = config or LoraConfig(**{"r": 4, "lora_alpha": 12} | options)
        model = get_peft_model(base_model(hf_base), config).eval()
        with torch.no_grad():
            for name, param in model.named_parameters():
                if param.requires_grad and "ranknum" not in name:  # a scale of AdaLoRA that PEFT does not save
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
        ({"target_modules": ["q_proj", "k_proj"], "use_rslora": True}, QK | {"use_rslora": True}),
        (
            {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}, "layers_to_transform": [0]},
            {"target_modules": ["q_proj", "w3"], "rank_pattern": {"mlp.w3": 2}, "layers_to_transform": 0}
            | {"lora_rank": 4, "lora_alpha": 12},
        ),
    ],
)
def test_an_adapter_of_peft_gives_its_logits(hf_base, build, logits, peft_adapter, options: dict, adapters: dict):
    folder, expected = peft_adapter(**options)
    model = build(FullModelHFCheckpointer(hf_base.dir), **adapters)
    load_adapter(model, folder, HFLayout(LLAMA, model.config))
    torch.testing.assert_close(logits(model, hf_base.tokens), expected, rtol=0, atol=1e-4)


def asked(folder: Path, adapter: Path, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of a model of which only the folders are known."""
    checkpointer = FullModelHFCheckpointer(folder, adapter_checkpoint=adapter)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    put_saved_adapters(checkpointer, model)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "k_proj"]},
        {"target_modules": ["v_proj", "down_proj", "lm_head"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "1.mlp.up_proj": 6}, "use_rslora": True},
        {"target_modules": ["o_proj", "up_proj"], "alpha_pattern": {"o_proj": 3}, "use_dora": True},
    ],
)
def test_an_adapter_says_itself_where_it_belongs_and_of_what_rank(hf_base, peft_adapter, options: dict):
    folder, expected = peft_adapter(**options)
    torch.testing.assert_close(asked(hf_base.dir, folder, hf_base.tokens), expected, rtol=0, atol=1e-4)
    assert (expected - hf_base.logits).abs().max() > 0.1


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        IA3Config(target_modules=["q_proj", "k_proj"], feedforward_modules=["q_proj"]),
        VeraConfig(r=8, target_modules=["q_proj", "down_proj"], projection_prng_key=3, save_projection=True),
        VeraConfig(r=8, target_modules=["v_proj", "up_proj"], projection_prng_key=3, save_projection=False),
        AdaLoraConfig(init_r=6, target_r=2, lora_alpha=60, total_step=10, target_modules=["v_proj", "down_proj"]),
        AdaLoraConfig(init_r=6, target_r=2, lora_alpha=-1, total_step=10, target_modules=["lm_head", "up_proj"]),
    ],
    ids=["IA3", "IA3 on inputs", "VeRA", "VeRA by its seed", "AdaLoRA", "AdaLoRA of the head"],
)
def test_an_adapter_of_another_method_says_what_it_is(hf_base, peft_adapter, config):
    folder, expected = peft_adapter(config)
    torch.testing.assert_close(asked(hf_base.dir, folder, hf_base.tokens), expected, rtol=0, atol=1e-4)
    assert (expected - hf_base.logits).abs().max() > 0.1


METHODS = {
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "adapter": IA3},
    "VeRA": {"target_modules": "all-linear", "adapter": VeRA},
    "AdaLoRA": {"target_modules": "all-linear", "adapter": AdaLoRA},
}


@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_merged_and_found_again(hf_base, build, logits, tmp_path, method, quantize_base):
    def arguments():
        kept = {"quantize_base": quantize_base, "quantize_unsupported": "skip"}
        return METHODS[method] | {"adapter": METHODS[method]["adapter"]()} | kept

    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, **arguments())
    live = logits(model, hf_base.tokens)
    assert (live - hf_base.logits).abs().max() > 0.1
    checkpointer.save(tmp_path / "out", model, verify=True)
    torch.testing.assert_close(logits(tmp_path / "out", hf_base.tokens), live, rtol=0, atol=2e-4)
    with torch.device("meta"):
        again = llama2.lora_llama2(**checkpointer.decoder_args, **arguments())
    FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=tmp_path / "out").load(
        again, device="cpu", dtype=torch.float32
    )
    assert torch.equal(logits(again.eval(), hf_base.tokens), live)


def test_a_bias_that_is_scaled_is_merged_too(tmp_path):
    theirs = tiny.make("qwen2")
    theirs.save_pretrained(tmp_path / "base")
    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    theirs = get_peft_model(theirs, config).eval()
    torch.manual_seed(2)
    for name, param in theirs.named_parameters():
        if "ia3" in name or "bias" in name:
            param.data += 0.3 * torch.randn_like(param)
    theirs.save_pretrained(tmp_path / "adapter")
    theirs.unload().save_pretrained(tmp_path / "base")
    tokens = torch.randint(3, 512, (2, 9))
    with torch.no_grad():
        expected = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "adapter"
        )(tokens).logits
    checkpointer = FullModelHFCheckpointer(tmp_path / "base", adapter_checkpoint=tmp_path / "adapter")
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    put_saved_adapters(checkpointer, model)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    checkpointer.save(tmp_path / "out", model.eval(), verify=True)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-4)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("adapter", "change", "problem"),
    [
        (VeRA, {"r": 8}, "r is 8, the model's is 256"),
        (VeRA, {"save_projection": False, "projection_prng_key": 1}, "projection_prng_key is 1, the model's is 0"),
        (VeRA, {"r": "many"}, "r is 'many', not a whole number above 0"),
        (VeRA, {"bias": "vera_only"}, "bias is 'vera_only', which is not served"),
        (IA3, {"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], the model's is None; merge it in"),
        (AdaLoRA, {"init_r": 6}, "init_r is 6, the model's is 12"),
        (AdaLoRA, {"rank_pattern": {"x": [1]}}, "rank_pattern is {'x': [1]}, not lists of true or false by names"),
        (AdaLoRA, {"use_dora": True}, "use_dora is True, which is not served"),
        (IA3, {"peft_type": "VERA"}, "peft_type is 'VERA', the model's is 'IA3'"),
    ],
)
def test_another_method_s_config_must_fit(hf_base, build, tmp_path, adapter, change, problem):
    model = build(FullModelHFCheckpointer(hf_base.dir), target_modules=["v_proj"], adapter=adapter())
    write_adapter(tmp_path / "a", model, HFLayout(LLAMA, model.config), hf_base.dir)
    (tmp_path / "a" / CONFIG).write_text(json.dumps(json.loads((tmp_path / "a" / CONFIG).read_text()) | change))
    assert problem in refused(model, tmp_path / "a")


def test_only_live_triplets_are_written_and_found_where_they_were(hf_base, build, logits, tmp_path):
    """With the scalars frozen that PEFT 0.21 trains by accident; one projection has lost all of its triplets."""
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    arguments = {"target_modules": ["q_proj"], "adapter": AdaLoRA(init_r=6, target_r=2, lora_alpha=90)}
    model = build(checkpointer, **arguments)
    for layer, flags in zip(model.layers, ([True, False, True, False, False, True], [False] * 6), strict=True):
        layer.attn.q_proj.mask = torch.tensor(flags)
        layer.attn.q_proj.lora_e.data[~torch.tensor(flags)] = 0
    live = logits(model, hf_base.tokens)
    checkpointer.save(tmp_path / "out", model, adapter_only=True, verify=True)
    weights = load_file(tmp_path / "out/adapter" / WEIGHTS)
    assert sorted(weight.shape[0] for name, weight in weights.items() if "lora_A" in name) == [0, 3]
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base_model(hf_base), tmp_path / "out/adapter")(hf_base.tokens).logits
    torch.testing.assert_close(theirs, live, rtol=0, atol=1e-4)
    assert (live - hf_base.logits).abs().max() > 0.1
    again = build(checkpointer, **arguments)
    load_adapter(again, tmp_path / "out", HFLayout(LLAMA, again.config))
    assert torch.equal(again.layers[0].attn.q_proj.lora_e, model.layers[0].attn.q_proj.lora_e)
    assert torch.equal(logits(again, hf_base.tokens), live)
    torch.testing.assert_close(asked(hf_base.dir, tmp_path / "out", hf_base.tokens), live, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapter", [AdaLoRA, IA3, VeRA])
def test_other_methods_on_a_part_of_a_fused_matrix_are_refused(tmp_path, adapter):
    checkpointer, model = build_fused(tmp_path, target_modules=["v_proj"], adapter=adapter())
    with pytest.raises(ConfigError, match="self_attn.qkv_proj is one matrix in the checkpoint, of which PEFT has no"):
        checkpointer.load(model, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("use_dora", [False, True])
def test_so_does_one_of_matrices_that_transformers_has_fused(tmp_path: Path, use_dora: bool):
    theirs = tiny.make("phi3")
    theirs.save_pretrained(tmp_path / "base")
    theirs = get_peft_model(theirs, LoraConfig(r=4, target_modules="all-linear", use_dora=use_dora)).eval()
    torch.manual_seed(2)
    for name, param in theirs.named_parameters():
        if "lora_" in name:
            param.data += 0.1 * torch.randn_like(param)
    theirs.save_pretrained(tmp_path / "adapter")
    tokens = torch.randint(3, 512, (2, 9))
    with torch.no_grad():
        expected = theirs(tokens).logits
    found = asked(tmp_path / "base", tmp_path / "adapter", tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def build_fused(tmp_path: Path, **arguments):
    """A model whose q, k and v are one matrix in its base, `tmp_path / "base"`; and the checkpointer of that."""
    tiny.make("phi3").save_pretrained(tmp_path / "base")
    checkpointer = FullModelHFCheckpointer(tmp_path / "base")
    with torch.device("meta"):
        return checkpointer, from_checkpoint(**checkpointer.decoder_args, **arguments)


def write_fused(tmp_path: Path, **arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Write its adapter, whose update is not zero, to `tmp_path / "adapter"`; return tokens and the live logits."""
    checkpointer, model = build_fused(tmp_path, **arguments)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    torch.manual_seed(2)
    for value in adapter_state(model).values():
        value.data += 0.1 * torch.randn_like(value)
    write_adapter(tmp_path / "adapter", model, checkpointer.layout, base=tmp_path / "base")
    tokens = torch.randint(3, 512, (2, 9))
    with torch.no_grad():
        return tokens, model.eval()(tokens)


def test_an_adapter_of_a_fused_matrix_that_we_wrote_is_read_in_the_same_way(tmp_path: Path):
    tokens, expected = write_fused(tmp_path, lora_attn_modules=["q_proj", "v_proj"], lora_rank=4)
    torch.testing.assert_close(asked(tmp_path / "base", tmp_path / "adapter", tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"r": "four"}, "r is 'four', not a whole number above 0"),
        ({"peft_type": "BOFT"}, "peft_type is 'BOFT'; known are LORA, "),
        ({"r": 8}, "r is 8, the model's is 4"),
    ],
)
def test_a_config_that_the_weights_are_not_of_is_one_line(hf_base, peft_adapter, change: dict, problem: str):
    folder, _ = peft_adapter(target_modules=["q_proj"])
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | change))
    with pytest.raises(CheckpointError, match=problem):
        asked(hf_base.dir, folder, hf_base.tokens)


def test_an_adapter_of_a_larger_model_is_one_line(hf_base, peft_adapter, tmp_path: Path):
    folder, _ = peft_adapter(target_modules=["q_proj", "o_proj"])
    small = LlamaConfig(**AutoConfig.from_pretrained(hf_base.dir).to_dict() | {"num_hidden_layers": 1})
    LlamaForCausalLM(small).save_pretrained(tmp_path / "small")
    problem = r"does not fit: the model has no projection model\.layers\.1\.self_attn\.o_proj, model.layers.1.*q_proj$"
    with pytest.raises(CheckpointError, match=problem):
        asked(tmp_path / "small", folder, hf_base.tokens)
    narrow = LlamaConfig(**AutoConfig.from_pretrained(hf_base.dir).to_dict() | {"hidden_size": 64, "head_dim": 16})
    LlamaForCausalLM(narrow).save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"does not fit: .* another shape .*\(4, 128\), the model's is \(4, 64\)"):
        asked(tmp_path / "narrow", folder, hf_base.tokens)


def test_adapter_checkpoint_is_loaded_onto_the_base(hf_base, build, tmp_path: Path):
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    write_adapter(tmp_path / "adapter", model, HFLayout(LLAMA, model.config), hf_base.dir)
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
    load_adapter(again, tmp_path / "theirs", HFLayout(LLAMA, again.config))
    assert all(torch.equal(value, adapter_state(again)[name]) for name, value in adapter_state(model).items())
    assert {value.dtype for value in adapter_state(again).values()} == {torch.float32}


def test_config_is_what_peft_needs(hf_base, build):
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK, lora_dropout=0.1)
    config = peft_config(model, HFLayout(LLAMA, model.config), hf_base.dir)
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
    write_adapter(tmp_path / "adapter", model, HFLayout(LLAMA, model.config), hf_base.dir)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 2}
    assert config["alpha_pattern"] == {"model.layers.0.self_attn.q_proj": 7}
    assert "model.layers.0.self_attn.k_proj" not in config["target_modules"] and len(config["target_modules"]) == 3
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base_model(hf_base), tmp_path / "adapter")(hf_base.tokens).logits
    torch.testing.assert_close(theirs, logits(model, hf_base.tokens), rtol=0, atol=1e-4)
    load_adapter(model, tmp_path / "adapter", HFLayout(LLAMA, model.config))


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
        load_adapter(model, folder, HFLayout(LLAMA, model.config))
    assert all(message in str(error.value) for message in messages) and "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in adapter_state(model).items())


def test_a_file_that_holds_more_than_an_adapter_is_not_loaded(hf_base, build, peft_adapter):
    """Weights of `bias`, `modules_to_save` and embeddings in a file whose config does not mention them."""
    folder, _ = peft_adapter(target_modules=["q_proj", "k_proj"])
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    weights = load_file(folder / WEIGHTS)
    for name in (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.modules_to_save.weight",
    ):
        save_file(weights | {name: torch.ones(4)}, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"1 is not the model's .{name}"):
            load_adapter(model, folder, HFLayout(LLAMA, model.config))


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", False, "pissa", "olora"])
def test_another_start_of_peft_gives_its_logits_or_is_refused(hf_base, build, logits, tmp_path: Path, init):
    """Adapters that change the base load once PEFT has converted them to adapters of the unchanged base."""
    torch.manual_seed(2)
    options = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj"], "init_lora_weights": init}
    theirs = get_peft_model(base_model(hf_base), LoraConfig(**options))
    changed = init in ("pissa", "olora")
    if changed:
        theirs.peft_config["default"].init_lora_weights = True
        theirs.save_pretrained(tmp_path / "init")
        theirs.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, param in theirs.named_parameters():
            if "lora_" in name:
                param += 0.1 * torch.randn_like(param)
        expected = theirs(hf_base.tokens).logits
    theirs.save_pretrained(tmp_path / "theirs")
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    if changed:
        with pytest.raises(CheckpointError, match=f"init_lora_weights is '{init}', which changed the base weights"):
            load_adapter(model, tmp_path / "theirs", HFLayout(LLAMA, model.config))
        theirs.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=tmp_path / "init")
        model = build(FullModelHFCheckpointer(hf_base.dir), **QK | {"lora_rank": 8, "lora_alpha": 24})
    load_adapter(model, tmp_path / "theirs", HFLayout(LLAMA, model.config))
    torch.testing.assert_close(logits(model, hf_base.tokens), expected, rtol=0, atol=2e-4)


HEAD = QK | {"apply_lora_to_output": True}
HEAD_WEIGHT = "base_model.model.lm_head.base_layer.weight"


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "k_proj", "lm_head"]},
        {"target_modules": "(.*q_proj|.*k_proj|lm_head)"},
        {"target_modules": ["q_proj", "k_proj", "lm_head"], "use_dora": True},
    ],
    ids=["list", "expression", "dora"],
)
def test_an_adapter_of_the_head_is_loaded_as_peft_saves_it(hf_base, build, logits, peft_adapter, options: dict):
    folder, expected = peft_adapter(**options)
    assert HEAD_WEIGHT in load_file(folder / WEIGHTS), "this test would show nothing"
    model = build(FullModelHFCheckpointer(hf_base.dir), **HEAD, use_dora=options.get("use_dora", False))
    load_adapter(model, folder, HFLayout(LLAMA, model.config))
    torch.testing.assert_close(logits(model, hf_base.tokens), expected, rtol=0, atol=1e-4)


def test_weights_of_the_base_in_an_adapter_must_be_those_of_this_base(hf_base, build, peft_adapter):
    folder, _ = peft_adapter(target_modules=["q_proj", "k_proj", "lm_head"])
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    weights, embedding = load_file(folder / WEIGHTS), "base_model.model.model.embed_tokens.weight"
    weights[embedding] = load_file(hf_base.dir / "model.safetensors")["model.embed_tokens.weight"]
    save_file(weights, folder / WEIGHTS)
    nf4 = {"quantize_base": True, "quantize_output": True, "quantize_unsupported": "skip"}
    models = [
        build(checkpointer, **HEAD),
        build(checkpointer, **HEAD, dtype=torch.bfloat16),
        build(checkpointer, **HEAD, dtype=torch.bfloat16, **nf4),
    ]
    for model in models:
        load_adapter(model, folder, HFLayout(LLAMA, model.config))
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / WEIGHTS)
    for model in models:  # of a base that PEFT had in bfloat16
        load_adapter(model, folder, HFLayout(LLAMA, model.config))
    for name in (HEAD_WEIGHT, embedding):
        for change in (
            lambda weight: weight.index_add(0, torch.tensor([5]), torch.ones(1, 128)),
            lambda weight: torch.cat([weight, weight[:1]]),
            lambda weight: weight.index_fill(0, torch.tensor([5]), float("nan")),
            lambda weight: weight.to(torch.int8),
        ):
            save_file(weights | {name: change(weights[name]).contiguous()}, folder / WEIGHTS)
            for model in models:
                with pytest.raises(CheckpointError, match=f"{name} in it is not the weight of this base") as error:
                    load_adapter(model, folder, HFLayout(LLAMA, model.config))
                assert "\n" not in str(error.value)


def test_a_weight_beside_a_head_in_nf4_is_the_base_if_it_gives_its_codes():
    weight = torch.randn(128, 128)
    head, plain = (torch.nn.Parameter(t, requires_grad=False) for t in (quantize(weight.bfloat16()), weight.bfloat16()))
    assert is_quantized(head)
    for value in (weight, weight.bfloat16()):
        assert _is_same(head, Weight.of(value)) and _is_same(plain, Weight.of(value))
        for wrong in (value + 0.1, value / 0):
            assert not _is_same(head, Weight.of(wrong)) and not _is_same(plain, Weight.of(wrong))


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("form", ["bin", "state dict", "magnitude.weight", "checkpoint folder"])
def test_other_forms_of_the_same_adapter_are_loaded(hf_base, build, tmp_path: Path, form: str, use_dora: bool):
    adapters = QK | {"use_dora": use_dora}
    model = build(FullModelHFCheckpointer(hf_base.dir), **adapters)
    folder = tmp_path / "epoch_0" / "adapter"
    folder.parent.mkdir()
    write_adapter(folder, model, HFLayout(LLAMA, model.config), hf_base.dir)
    weights = load_file(folder / WEIGHTS)
    if form == "bin":
        (folder / WEIGHTS).unlink()
        torch.save(weights, folder / "adapter_model.bin")
    elif form == "state dict":
        named = {name.replace(".weight", ".default.weight"): weight for name, weight in weights.items()}
        named = {name + ".default.weight" * name.endswith("vector"): weight for name, weight in named.items()}
        save_file(named, folder / WEIGHTS)
    elif form == "magnitude.weight":
        save_file({name + ".weight" * name.endswith("vector"): w for name, w in weights.items()}, folder / WEIGHTS)
    again = build(FullModelHFCheckpointer(hf_base.dir), **adapters)
    again.layers[0].attn.q_proj.init_adapter()
    load_adapter(again, folder.parent if form == "checkpoint folder" else folder, HFLayout(LLAMA, again.config))
    assert all(torch.equal(value, adapter_state(again)[name]) for name, value in adapter_state(model).items())


@pytest.fixture
def written(hf_base, build, tmp_path: Path):
    """A DoRA model, and its adapter in a folder."""
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK, use_dora=True)
    write_adapter(tmp_path / "adapter", model, HFLayout(LLAMA, model.config), hf_base.dir)
    return model, tmp_path / "adapter"


def refused(model, folder: Path) -> str:
    """Return the one-line error that refuses an adapter; check that the model stays as it was."""
    before = {name: value.clone() for name, value in adapter_state(model).items()}
    with pytest.raises(CheckpointError) as error:
        load_adapter(model, folder, HFLayout(LLAMA, model.config))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert all(torch.equal(before[name], value) for name, value in adapter_state(model).items())
    return str(error.value)


def test_an_adapter_that_does_not_fit_is_refused_before_the_base_is_read(hf_base, written, monkeypatch):
    _, folder = written
    monkeypatch.setattr(safetensors_stream, "_read", lambda path, name: pytest.fail(f"{name} is read"))
    checkpointer = FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=folder)
    for adapters, message in ((QK, "use_dora is True"), (QK | {"use_dora": True, "lora_rank": 8}, "r is 4")):
        with torch.device("meta"):
            model = llama2.lora_llama2(**checkpointer.decoder_args, **adapters)
        with pytest.raises(CheckpointError, match=message):
            checkpointer.load(model, device="cpu", dtype=torch.float32)
        assert all(param.is_meta for param in model.parameters())


def test_a_file_that_is_cut_off_or_other_bytes_is_one_line(written):
    model, folder = written
    for name in (CONFIG, WEIGHTS):
        whole = (folder / name).read_bytes()
        for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 9):
            (folder / name).write_bytes(whole[:size])
            assert name in refused(model, folder)
        for content in (
            b"null",
            b"[]",
            b"3",
            b'"r"',
            b"\xff\xfe",
            b"\x80\x02}q\x00.",
            b"<html>",
            b"{" * 9999,
            b"PK\x03\x04",
        ):
            (folder / name).write_bytes(content)
            assert name in refused(model, folder)
        (folder / name).write_bytes(whole)
    load_adapter(model, folder, HFLayout(LLAMA, model.config))


def test_a_header_with_any_byte_changed_is_one_line_or_the_same(written):
    """A seeded sweep over the safetensors header: lengths, JSON, names, dtypes, shapes, offsets."""
    model, folder = written
    whole = (folder / WEIGHTS).read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        at = draw.randrange(8 + int.from_bytes(whole[:8], "little"))
        changed = bytearray(whole)
        changed[at] = draw.randrange(256)
        (folder / WEIGHTS).write_bytes(changed)
        if changed != whole:
            try:
                load_adapter(
                    model, folder, HFLayout(LLAMA, model.config)
                )  # a space of the padding, an offset between tensors of one kind
            except CheckpointError as error:
                assert "\n" not in str(error)


def test_weights_of_another_kind_are_one_line(written):
    model, folder = written
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if name.endswith("vector"))
    other = name.replace("lora_magnitude_vector", "lora_A.weight")
    for change, message in {
        "nan": ({name: weights[name] * float("nan")}, "has NaN or infinity in"),
        "inf": ({other: weights[other] / 0}, "has NaN or infinity in"),
        "rows": ({name: weights[name][None].clone()}, r"(1, "),
        "empty": ({name: torch.ones(0)}, "(0,)"),
        "number": ({name: torch.tensor(1.0)}, "()"),
        "int": ({other: weights[other].int()}, "weights are int32"),
        "twice": ({f"{name}.weight": weights[name].clone()}, "twice"),
    }.values():
        save_file(weights | change, folder / WEIGHTS)
        assert message in refused(model, folder)
    save_file({}, folder / WEIGHTS)
    assert "12 weights are missing" in refused(model, folder)


def test_a_pickle_that_runs_code_or_holds_no_tensors_is_refused(written):
    model, folder = written
    (folder / WEIGHTS).unlink()
    assert f"has no {WEIGHTS} or adapter_model.bin" in refused(model, folder)
    for content, message in ((Payload(), "would run code"), ([1, 2], "not a plain dictionary of tensors")):
        torch.save(content, folder / "adapter_model.bin")
        assert message in refused(model, folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "adapter_model.bin" in refused(model, folder)


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("the code is run",))


def test_a_damaged_adapter_is_named(hf_base, build, peft_adapter, tmp_path: Path):
    folder, _ = peft_adapter(target_modules=["q_proj", "k_proj"])
    model = build(FullModelHFCheckpointer(hf_base.dir), **QK)
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name][:2].clone()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lora_A.weight: \(2, 128\), the model's is \(4, 128\)"):
        load_adapter(model, folder, HFLayout(LLAMA, model.config))
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"has no {WEIGHTS}"):
        load_adapter(model, folder, HFLayout(LLAMA, model.config))
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="adapter_config.json does not exist"):
        load_adapter(model, folder, HFLayout(LLAMA, model.config))


@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_taken_from_the_base_is_merged_and_found_again(hf_base, build, logits, tmp_path, init, quantize_base):
    arguments = {"target_modules": "all-linear", "init_lora_weights": init, "quantize_base": quantize_base}
    arguments |= {"quantize_unsupported": "skip"}
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, **arguments)
    live = logits(model, hf_base.tokens)
    assert (live - hf_base.logits).abs().max() > 0.1
    checkpointer.save(tmp_path / "out", model, verify=True)
    torch.testing.assert_close(logits(tmp_path / "out", hf_base.tokens), live, rtol=0, atol=2e-4)

    with torch.device("meta"):
        again = llama2.lora_llama2(**checkpointer.decoder_args, **arguments)
    FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=tmp_path / "out/adapter").load(
        again, device="cpu", dtype=torch.float32
    )
    assert torch.equal(logits(again.eval(), hf_base.tokens), live)


def test_a_start_taken_from_the_base_may_be_merged_into_the_original_one(hf_base, build, logits, tmp_path):
    """What NF4 loses is lost of the rest alone: the original gains exactly what A and B have changed."""
    checkpointer = FullModelHFCheckpointer(hf_base.dir, merge_into="original")
    arguments = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa", "quantize_base": True}
    model = build(checkpointer, **arguments)
    checkpointer.save(tmp_path / "out", model, verify=True)
    base, merged = load_file(hf_base.dir / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    layer = model.layers[1]
    for name, module in (("self_attn.q_proj", layer.attn.q_proj), ("mlp.down_proj", layer.mlp.w2)):
        key = f"model.layers.1.{name}.weight"
        a, b = module.start
        change = module.lora_b.weight @ module.lora_a.weight - b @ a
        torch.testing.assert_close(merged[key] - base[key], module.scaling * change, rtol=0, atol=1e-5)


def test_loftq_trains_on_the_ordinary_base_in_nf4(hf_base, build, logits, tmp_path):
    arguments = {"init_lora_weights": "loftq", "quantize_base": True, "lora_rank": 16, "lora_alpha": 32}
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    ordinary = build(checkpointer, lora_attn_modules=["q_proj"], quantize_base=True)
    model = build(checkpointer, lora_attn_modules=["q_proj"], **arguments)
    q_proj, theirs = model.layers[0].attn.q_proj, ordinary.layers[0].attn.q_proj
    assert torch.equal(dequantize(q_proj.weight), dequantize(theirs.weight))
    a, b = q_proj.start
    weight = load_file(hf_base.dir / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    lost = weight - dequantize(q_proj.weight)
    assert (lost - q_proj.scaling * b @ a).norm() < 0.85 * lost.norm()
    checkpointer.save(tmp_path / "out", model, verify=True)
    live = logits(model, hf_base.tokens)
    torch.testing.assert_close(logits(tmp_path / "out", hf_base.tokens), live, rtol=0, atol=2e-4)
    with pytest.raises(ConfigError, match="merge_into: original adds what init_lora_weights: loftq makes up for"):
        build(FullModelHFCheckpointer(hf_base.dir, merge_into="original"), lora_attn_modules=["q_proj"], **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"init_lora_weights": "pissa", "lora_rank": 4},
        {"init_lora_weights": "olora", "lora_rank": 4, "use_rslora": True},
    ],
    ids=["PiSSA", "OLoRA"],
)
def test_starts_of_the_parts_of_a_fused_matrix_are_one_adapter_in_peft(tmp_path, arguments):
    tokens, live = write_fused(tmp_path, target_modules="all-linear", **arguments)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")(tokens).logits
    torch.testing.assert_close(theirs, live, rtol=0, atol=2e-4)


def test_parts_of_a_fused_matrix_whose_scales_differ_are_refused(tmp_path):
    patterns = {"rank_pattern": {"q_proj": 4, "k_proj": 2, "v_proj": 2}, "alpha_pattern": {"q_proj": 16}}
    checkpointer, model = build_fused(tmp_path, target_modules="all-linear", use_rslora=True, **patterns)
    with pytest.raises(ConfigError, match="self_attn.qkv_proj is one matrix in the checkpoint, and the adapters of"):
        checkpointer.load(model, device="cpu", dtype=torch.float32)
