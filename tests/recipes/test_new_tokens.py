"""Tokens that a run adds: from the tokenizer and the grown embedding to answers, files and a resume."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.data.chats import write_folder
from tests.recipes.conftest import digest, metrics

NEW = ["<go>", "<stop>"]
LORA = ("run", "lora_finetune_single_device", "--config", "lora", "model.lora_rank=2")
FULL = ("run", "full_finetune_single_device", "--config", "full")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path):
    """A tiny Llama with a tokenizer.json."""
    folder = write_folder(tmp_path / "base", "bytelevel")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
    sizes |= {"vocab_size": len(AutoTokenizer.from_pretrained(folder)), "initializer_range": 0.2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=request.param)).save_pretrained(folder)
    return folder


@pytest.fixture
def words(base, tmp_path):
    """What a run over rows with the new tokens needs."""
    rows = [{"input": f"{word} cat", "output": f"<go>{word}<stop>"} for word in ("red", "blue", "big", "small")] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        *(f"model_dir={base}", "data=rows.jsonl", "tokenizer.prompt_template=null", f"tokenizer.add_tokens={NEW}"),
        *("device=cpu", "dtype=fp32", "batch_size=4", "gradient_accumulation_steps=1", "epochs=3", "seed=1"),
        *("optimizer.lr=2e-2", "lr_scheduler=null", "output_dir=out", "keep_last_n_checkpoints=null"),
    )


def test_a_run_with_new_tokens_is_read_by_everyone(base, words, tune, tmp_path):
    done = tune(*LORA, *words)
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    [line] = [line for line in done.stderr.splitlines() if "the embedding grows" in line]
    assert line.endswith(f"from {size:,} to {size + 2:,} rows, the new ones the mean of the others")
    losses = metrics(tmp_path / "out", "loss")
    assert losses[-1] < losses[0]
    folder = tmp_path / "out/epoch_2"

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.convert_tokens_to_ids(name) for name in NEW] == [size, size + 1]
    assert tokenizer("a<go>b", add_special_tokens=False).input_ids.count(size) == 1
    merged = AutoModelForCausalLM.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(size + 2, mean_resizing=False)
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")
    tokens = torch.tensor([[1, 40, size, 41, size + 1]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens).logits, merged(tokens).logits, rtol=0, atol=1e-4)

    prompt = tokenizer("red cat", add_special_tokens=False).input_ids
    with torch.no_grad():
        answer = merged.generate(torch.tensor([[1, *prompt]]), max_new_tokens=6, do_sample=False)[0, len(prompt) + 1 :]
    expected = tokenizer.decode(answer, skip_special_tokens=True)
    assert NEW[0] in expected
    for source in ("out", "out/epoch_2/adapter"):
        assert (
            tune("generate", source, "red cat", "temperature=0", "max_new_tokens=6").stdout.strip() == expected.strip()
        )
    shutil.move(folder / "adapter", tmp_path / "alone")
    tune("export", "alone", "--to", "hf", "--out", "exported", "--base", base)
    torch.testing.assert_close(*(load_file(each / "model.safetensors") for each in (tmp_path / "exported", folder)))


def test_a_resume_goes_on_as_if_never_stopped(words, tune, tmp_path):
    for recipe in (LORA, (*LORA, "model.train_embeddings=all"), FULL):
        for name in ("out", "parts"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        tune(*recipe, *words)
        tune(*recipe, *words, "output_dir=parts", "save_every_n_steps=5")
        for each in (tmp_path / "parts").iterdir():
            if each.is_dir() and each.name != "step_5":
                shutil.rmtree(each)
        tune(*recipe, *words, "output_dir=parts", "resume_from_checkpoint=True")
        assert digest(tmp_path / "parts", "epoch_2") == digest(tmp_path / "out", "epoch_2")
