"""The LoRA recipe: its files against transformers and PEFT, its resume, and its answers to bad input."""

import json
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torchtune_lite.models.llama2 import lora_llama2

from tests.recipes.conftest import Tiny, common_keys, metrics
from torchtune_lite import checkpoint


@pytest.fixture
def config_file(tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "lora.yaml"
    path.write_text(
        common_keys(tiny, tmp_path / "out")
        + """
model:
  _component_: torchtune_lite.models.llama2.lora_llama2
  lora_attn_modules: [q_proj, v_proj]
  apply_lora_to_mlp: True
  lora_rank: 4
  lora_alpha: 8
batch_size: 4
gradient_accumulation_steps: 3
epochs: 2
clip_grad_norm: 1.0
optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-2}
"""
    )
    return path


TOKENS = torch.arange(3, 43).reshape(2, 20)


@pytest.mark.parametrize("use_dora", [False, True])
def test_merged_model_adapter_in_peft_and_live_model_agree(tiny, tune, config_file, tmp_path, use_dora):
    tune("run", "lora_finetune_single_device", "--config", config_file, f"model.use_dora={use_dora}")
    losses = metrics(tmp_path / "out", "loss")
    assert len(losses) == 6 and losses[-1] < losses[0]
    folder = tmp_path / "out" / "epoch_1"

    checkpointer = checkpoint.FullModelHFCheckpointer(tiny.checkpoint)
    with torch.device("meta"):
        live = lora_llama2(
            **checkpointer.decoder_args,
            lora_attn_modules=["q_proj", "v_proj"],
            apply_lora_to_mlp=True,
            lora_rank=4,
            lora_alpha=8,
            use_dora=use_dora,
        )
    checkpointer.load(live, device=torch.device("cpu"), dtype=torch.float32)
    trained = load_file(folder / "adapter" / "adapter_model.safetensors")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, folder / "adapter")
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = adapted(TOKENS).logits
        torch.testing.assert_close(merged(TOKENS).logits, expected, rtol=0, atol=1e-4)
        assert (live(TOKENS) - expected).abs().max() > 0.1, "training changed nothing: this test could not fail"
        checkpoint.load_adapter(live, folder / "adapter", checkpointer.layout)
        torch.testing.assert_close(live(TOKENS), expected, rtol=0, atol=1e-4)
    assert any("lora_B" in name for name in trained)


def test_qlora_saves_the_function_it_trained(tiny, tune, config_file, tmp_path):
    result = tune("run", "lora_finetune_single_device", "--config", config_file, "model.quantize_base=True")
    assert "trainable params" in result.stderr and " in NF4 (0.14 MB)" in result.stderr
    assert re.findall(r"verified (epoch_.) in .* weights are as they were trained", result.stderr) == [
        "epoch_0",
        "epoch_1",
    ]
    base = load_file(tiny.checkpoint / "model.safetensors")
    merged = load_file(tmp_path / "out" / "epoch_1" / "model.safetensors")
    assert merged.keys() == base.keys()
    assert {t.dtype for t in merged.values()} == {torch.float32}
    name = "model.layers.0.self_attn.{}.weight"
    torch.testing.assert_close(merged[name.format("k_proj")], base[name.format("k_proj")], rtol=0, atol=0)
    assert not torch.equal(merged[name.format("q_proj")], base[name.format("q_proj")])


def test_a_second_run_starts_from_the_quantised_cache(tune, config_file, tmp_path):
    recipe = ("run", "lora_finetune_single_device", "--config", config_file, "model.quantize_base=True")
    recipe += ("checkpointer.cache_quantized=True", "max_steps_per_epoch=1", "verify_saves=null")
    first, second = (tune(*recipe, f"output_dir={tmp_path}/{name}") for name in ("one", "two"))
    assert " INFO wrote 10 weights (" in first.stderr and " INFO read 10 weights (" in second.stderr
    assert "verified" not in first.stderr
    assert len(list((tmp_path / "nf4_cache").iterdir())) == 1
    assert metrics(tmp_path / "one", "loss") == metrics(tmp_path / "two", "loss")


OTHER = ("model.lora_rank=8", "model.lora_alpha=16")  # the defaults: they are LoRA's
ADALORA = (*OTHER, "model.adapter={_component_: torchtune_lite.peft.AdaLoRA, init_r: 6, target_r: 3}")
PART_OF_ALL = ("model.target_modules=all-linear", "model.rank_pattern={down_proj: 2}", "model.layers_to_transform=[1]")


@pytest.mark.parametrize(
    "changes",
    [
        ("model.lora_dropout=0.1", "model.quantize_base=True"),
        ("loraplus_lr_ratio=8", "model.use_rslora=True", *PART_OF_ALL),
        ("model.init_lora_weights=pissa_niter_4", "model.quantize_base=True", "adapter_dtype=fp32", "dtype=bf16"),
        ("model.init_lora_weights=loftq", "model.quantize_base=True"),
        (*OTHER, "model.adapter={_component_: torchtune_lite.peft.IA3}"),
        (*OTHER, "model.adapter={_component_: torchtune_lite.peft.VeRA, r: 8}", "model.quantize_base=True"),
        (*ADALORA, "model.adapter.tinit=0", "model.adapter.tfinal=2"),  # step_2 in the middle of pruning
        (*ADALORA, "model.adapter.tinit=0", "model.adapter.tfinal=5"),  # and after it, at an odd interval
        (*ADALORA, "model.adapter.tinit=0", "model.adapter.tfinal=1", "model.adapter.deltaT=2", "dtype=bf16"),
    ],
    ids=[
        *("dropout, NF4", "LoRA+, rsLoRA, patterns", "PiSSA, NF4", "LoftQ", "IA3", "VeRA, NF4"),
        *("AdaLoRA while it prunes", "AdaLoRA pruned", "AdaLoRA between two prunings, bf16"),
    ],
)
def test_resume_continues_as_if_never_stopped(tune, config_file, tmp_path, changes):
    recipe = ("run", "lora_finetune_single_device", "--config", config_file, *changes)
    recipe += ("save_adapter_weights_only=True",)
    tune(*recipe)
    parts = tmp_path / "parts"
    tune(*recipe, f"output_dir={parts}", "save_every_n_steps=2")
    for folder in parts.iterdir():
        if folder.is_dir() and folder.name != "step_2":
            shutil.rmtree(folder)
    tune(*recipe, f"output_dir={parts}", "resume_from_checkpoint=True")
    assert metrics(parts, "loss") == metrics(tmp_path / "out", "loss")
    expected, resumed = (
        load_file(d / "epoch_1" / "adapter" / "adapter_model.safetensors") for d in (tmp_path / "out", parts)
    )
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name
    assert not (parts / "epoch_1" / "model.safetensors").exists()
    assert PART_OF_ALL[0] not in changes or {name.split(".")[4] for name in resumed} == {"1"}  # the layer


def test_every_step_is_logged_with_its_numbers_and_drawn(tune, config_file, tmp_path):
    tune("run", "lora_finetune_single_device", "--config", config_file, "dtype=bf16", "adapter_dtype=fp32",
         "max_steps_per_epoch=2", without=())  # fmt: skip
    assert (tmp_path / "out" / "loss_curve.png").exists()
    adapter = load_file(tmp_path / "out" / "epoch_1" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1]
    for line in lines:
        assert {"loss", "lr", "grad_norm", "tokens_per_second"} <= line.keys()
        assert any(name.startswith("peak_memory") for name in line)


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("optimizer.learning_rate=1e-3", 2, ["learning_rate", "optimizer"]),
        ("bach_size=2", 2, ["bach_size", "batch_size"]),
        ("adapter_dtype=fp16", 2, ["adapter_dtype", "fp32 or bf16"]),
        ("checkpointer.merge_into=base", 2, ["merge_into", "quantized, original"]),
        ("batch_size=0", 2, ["batch_size", "at least 1"]),
        ("model.lora_attn_modules=[q_prj]", 2, ["q_prj", "q_proj"]),
        ("model.num_layers=3", 4, ["num_layers", "3", "2"]),
        ("checkpointer.checkpoint_dir=/nowhere", 4, ["/nowhere"]),
        ("dataset.source=/nowhere.jsonl", 3, ["/nowhere.jsonl"]),
        ("device=cuda", 2, ["cuda", "cpu"]),
    ],
)
def test_bad_input_is_one_line(tune, config_file, tmp_path, override, code, words):
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    result = tune("run", "lora_finetune_single_device", "--config", config_file, override, check=False)
    assert result.returncode == code, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "error" in line]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists(), "something was written"


def test_tokenizer_larger_than_the_embedding_is_refused(tiny, tune, config_file, tmp_path):
    small = tmp_path / "small"
    config = transformers.LlamaConfig.from_pretrained(tiny.checkpoint)
    config.vocab_size = 90
    transformers.LlamaForCausalLM(config).save_pretrained(small)
    result = tune("run", "lora_finetune_single_device", "--config", config_file,
                  f"checkpointer.checkpoint_dir={small}", check=False)  # fmt: skip
    assert result.returncode == 3
    assert "100" in result.stderr and "90" in result.stderr


def test_malformed_data_names_file_and_line(tiny, tune, config_file, tmp_path):
    lines = tiny.train.read_text().splitlines()
    lines[4] = lines[4][:-3]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    result = tune("run", "lora_finetune_single_device", "--config", config_file,
                  f"dataset.source={tmp_path}/bad.jsonl", check=False)  # fmt: skip
    assert result.returncode == 3
    assert "bad.jsonl:5" in result.stderr
    assert "Traceback" not in result.stderr


def test_adalora_is_pruned_to_its_target_and_loads_in_peft(tiny, tune, config_file, tmp_path):
    result = tune("run", "lora_finetune_single_device", "--config", config_file, *ADALORA)
    assert "AdaLoRA has 30 of 60 triplets left: layers.0.attn.q_proj " in result.stderr
    assert metrics(tmp_path / "out", "rank_budget")[:4] == [45, 36, 31, 30]
    folder = tmp_path / "out" / "epoch_1"
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["total_step"], config["tinit"], config["tfinal"]) == (6, 0, 1)
    assert sum(sum(flags) for flags in config["rank_pattern"].values()) == 30
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, folder / "adapter")
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, adapted(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("model.adapter.tfinal=6", "of 6 steps, tinit 0 and tfinal 6 leave none to prune in"),
        ("optimizer_in_bwd=True", "optimizer_in_bwd: True drops the gradients that AdaLoRA prunes by"),
    ],
)
def test_adalora_refuses_what_it_cannot_do(tune, config_file, change, problem):
    result = tune("run", "lora_finetune_single_device", "--config", config_file, *ADALORA, change, check=False)
    assert result.returncode and problem in result.stderr and "Traceback" not in result.stderr


def starting_from(tmp_path: Path, **changes: object) -> list[str]:
    """The words of a run to tmp_path/more that starts from the adapter of tmp_path/out."""
    changes = {"output_dir": tmp_path / "more", "epochs": 1, "optimizer.lr": 0} | changes
    folder = tmp_path / "out/epoch_0"
    return [f"checkpointer.adapter_checkpoint={folder}", *(f"{key}={value}" for key, value in changes.items())]


def test_a_run_goes_on_with_an_adapter_as_it_is(tune, config_file, tmp_path):
    recipe = ("run", "lora_finetune_single_device", "--config", config_file)
    shape = ("model.use_rslora=True", "model.target_modules=[q_proj, w2]", "model.rank_pattern={w2: 2}")
    tune(*recipe, *shape, "epochs=1")
    result = tune(*recipe, *starting_from(tmp_path))
    assert "what 'model' says of adapters is not used" in result.stderr
    old, new = (tmp_path / run / "epoch_0/adapter" for run in ("out", "more"))
    assert (new / "adapter_config.json").read_text() == (old / "adapter_config.json").read_text()
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (old, new))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    tune(*recipe, *starting_from(tmp_path, epochs=2, resume_from_checkpoint=True))
    assert len(metrics(tmp_path / "more", "loss")) == 6


def test_a_run_puts_a_new_adapter_on_a_merged_one(tune, config_file, tmp_path):
    recipe = ("run", "lora_finetune_single_device", "--config", config_file, "checkpointer.merge_adapter=True")
    tune(*recipe[:-1], "epochs=1")
    result = tune(*recipe, *starting_from(tmp_path), "save_adapter_weights_only=True", check=False)
    assert result.returncode and "save_adapter_weights_only leaves out the base that merge_adapter" in result.stderr
    tune(*recipe, *starting_from(tmp_path), "model.lora_rank=2")
    merged, again = (load_file(tmp_path / run / "epoch_0/model.safetensors") for run in ("out", "more"))
    for name, value in merged.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)
    result = tune("chat", tmp_path / "more/epoch_0/adapter", check=False)
    assert result.returncode and "epoch_0 is merged into its base; name the merged model" in result.stderr
