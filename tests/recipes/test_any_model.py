"""The configs that name no family: they need only a folder and a file."""

import json

import pytest
import yaml

from tests.models.tiny import make
from tests.recipes.conftest import metrics

RECIPES = {
    "lora": "lora_finetune_single_device",
    "qlora": "lora_finetune_single_device",
    "full": "full_finetune_single_device",
}
SHORT = ("max_steps_per_epoch=2", "gradient_accumulation_steps=1", "device=cpu", "dtype=fp32")


@pytest.mark.parametrize("name", RECIPES)
def test_it_needs_two_paths(name, tiny, tune, tmp_path):
    paths = (f"model_dir={tiny.checkpoint}", f"data={tiny.train}", "tokenizer.prompt_template=null")
    said = tune("validate", name, *paths).stdout.splitlines()
    tune("run", RECIPES[name], "--config", name, *paths, *SHORT, "output_dir=out")
    assert len(metrics(tmp_path / "out", "loss")) == 2
    assert (tmp_path / "out/epoch_0/model.safetensors").is_file()
    assert said[1] in (tmp_path / "out/run.log").read_text()
    saved = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert saved["checkpointer"]["checkpoint_dir"] == str(tiny.checkpoint)
    assert saved["dataset"]["source"] == str(tiny.train) and not {"include", "model_dir", "data"} & set(saved)


def test_qlora_leaves_what_nf4_does_not_fit_and_says_so_in_one_line(tiny, tune, tmp_path):
    import transformers

    narrow = tmp_path / "narrow"
    config = transformers.LlamaConfig.from_pretrained(tiny.checkpoint)
    config.update({"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2})
    transformers.LlamaForCausalLM(config).save_pretrained(narrow)
    (narrow / "tokenizer.model").write_bytes((tiny.checkpoint / "tokenizer.model").read_bytes())
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "red cat"}) + "\n")
    words = (f"model_dir={narrow}", "data=rows.jsonl", "tokenizer.prompt_template=null", *SHORT, "output_dir=out")
    done = tune("run", RECIPES["qlora"], "--config", "qlora", *words)
    [line] = [line for line in done.stderr.splitlines() if "they stay unquantised" in line]
    assert "q_proj (96 -> 128)" in line


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_gemma_is_refused_in_fp16_before_the_run_and_in_mixed_precision_too(family, tiny, tune, tmp_path):
    make(family).save_pretrained(tmp_path / family)
    (tmp_path / family / "tokenizer.model").write_bytes((tiny.checkpoint / "tokenizer.model").read_bytes())
    words = (f"model_dir={family}", f"data={tiny.train}", "tokenizer.prompt_template=null", "device=cpu", "dtype=fp16")
    for how in ("adapter_dtype=fp32", "mixed_precision=True"):
        for command in (("validate", "lora"), ("run", RECIPES["lora"], "--config", "lora")):
            done = tune(*command, *words, how, check=False)
            message = f"tune: error: dtype: fp16 does not hold the activations of {family} models; use bf16 or fp32"
            assert (done.returncode, done.stderr.splitlines()[-1]) == (2, message)
