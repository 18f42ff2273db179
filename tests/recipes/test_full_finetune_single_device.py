"""The full fine-tuning recipe against a plain loop over transformers' Llama, and its resume against an unbroken run."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torchtune_lite.models.llama2 import llama2_tokenizer

from tests.recipes.conftest import Tiny, common_keys, metrics
from torchtune_lite.datasets import instruct_dataset


@pytest.fixture
def config_file(tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "full.yaml"
    path.write_text(
        common_keys(tiny, tmp_path / "out")
        + """
model: {_component_: torchtune_lite.models.llama2.llama2}
shuffle: False
batch_size: 3
optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-3, weight_decay: 0.01}
lr_scheduler:
  _component_: torchtune_lite.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 3
"""
    )
    return path


def plain_loop(
    tiny: Tiny, *, epochs: int, accumulation: int, clip: float | None, train_on_input: bool
) -> tuple[list[float], transformers.LlamaForCausalLM]:
    """Train transformers' model on the same tokens, nothing of ours but the data set; return each step's loss."""
    tokenizer = llama2_tokenizer(str(tiny.checkpoint / "tokenizer.model"), prompt_template=None)
    rows = instruct_dataset(tokenizer, source=str(tiny.train), train_on_input=train_on_input)
    samples = [rows[i] for i in range(len(rows))]
    micro = [samples[i : i + 3] for i in range(0, len(samples), 3)]
    windows = [micro[i : i + accumulation] for i in range(0, len(micro), accumulation)]
    model = transformers.LlamaForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 3, epochs * len(windows))
    losses = []
    for window in windows * epochs:
        targets = sum(label != -100 for batch in window for sample in batch for label in sample["labels"])
        total = 0.0
        for batch in window:
            for sample in batch:  # one at a time: no padding to get wrong
                logits = model(torch.tensor([sample["tokens"]])).logits[0]
                labels = torch.tensor(sample["labels"])
                loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / targets
                loss.backward()
                total += loss.item()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(total)
    return losses, model


@pytest.mark.parametrize(
    ("accumulation", "clip", "train_on_input", "checkpointing"),
    [(1, None, True, False), (3, None, False, True), (4, 0.5, False, False)],
)
def test_losses_and_weights_equal_a_plain_loop(
    tiny, tune, config_file, tmp_path, accumulation, clip, train_on_input, checkpointing
):
    epochs = math.ceil(20 / math.ceil(10 / accumulation))
    expected, reference = plain_loop(
        tiny, epochs=epochs, accumulation=accumulation, clip=clip, train_on_input=train_on_input
    )
    tune(
        "run",
        "full_finetune_single_device",
        "--config",
        config_file,
        f"epochs={epochs}",
        f"gradient_accumulation_steps={accumulation}",
        f"clip_grad_norm={'null' if clip is None else clip}",
        f"dataset.train_on_input={train_on_input}",
        f"enable_activation_checkpointing={checkpointing}",
    )
    losses = metrics(tmp_path / "out", "loss")
    assert len(losses) == len(expected) >= 20
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    saved = load_file(tmp_path / "out" / f"epoch_{epochs - 1}" / "model.safetensors")
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-4)


def test_resume_continues_as_if_never_stopped(tune, config_file, tmp_path):
    recipe = ("run", "full_finetune_single_device", "--config", config_file, "epochs=2", "shuffle=True", "batch_size=4")
    tune(*recipe)
    tune(*recipe, f"output_dir={tmp_path}/parts", "save_every_n_steps=5")
    parts = tmp_path / "parts"
    for folder in parts.iterdir():  # as if killed after step 5, in the middle of the first epoch
        if folder.is_dir() and folder.name != "step_5":
            shutil.rmtree(folder)
    tune(*recipe, f"output_dir={parts}", "resume_from_checkpoint=True")
    assert metrics(parts, "loss") == metrics(tmp_path / "out", "loss")
    expected = load_file(tmp_path / "out" / "epoch_1" / "model.safetensors")
    resumed = load_file(parts / "epoch_1" / "model.safetensors")
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_validation_loss_is_that_of_transformers(tiny, tune, config_file, tmp_path):
    with config_file.open("a") as file:
        file.write(f"""
dataset_val:
  _component_: torchtune_lite.datasets.instruct_dataset
  source: {tiny.val}
run_val_every_n_steps: 2
max_steps_per_epoch: 5
""")
    tune("run", "full_finetune_single_device", "--config", config_file)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4, 5]

    tune("run", "full_finetune_single_device", "--config", config_file, "run_val_every_n_steps=null",
         f"output_dir={tmp_path}/end")  # fmt: skip
    [val_loss] = metrics(tmp_path / "end", "val_loss")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "end" / "epoch_0")
    tokenizer = llama2_tokenizer(str(tiny.checkpoint / "tokenizer.model"), prompt_template=None)
    rows = instruct_dataset(tokenizer, source=str(tiny.val))
    total = count = 0
    for i in range(len(rows)):
        labels = torch.tensor(rows[i]["labels"])
        with torch.no_grad():
            logits = model(torch.tensor([rows[i]["tokens"]])).logits[0]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    assert val_loss == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("words", [["collate=padded"], ["collate=padded", "group_by_length=True"], ["num_workers=2"]])
def test_how_batches_are_made_changes_no_loss(tune, config_file, tmp_path, words):
    recipe = ("run", "full_finetune_single_device", "--config", config_file, "batch_size=29")
    tune(*recipe)
    tune(*recipe, "output_dir=other", *words)
    torch.testing.assert_close(
        metrics(tmp_path / "other", "loss"),
        metrics(tmp_path / "out", "loss"),
        rtol=0,
        atol=0 if "num" in words[0] else 1e-5,
    )
    padding = metrics(tmp_path / "other", "padding")
    assert (min(padding) > 0.1) == (words[0] == "collate=padded") and set(metrics(tmp_path / "out", "padding")) == {0}


def test_steps_in_the_backward_pass_change_no_bit(tune, config_file, tmp_path):
    recipe = ("run", "full_finetune_single_device", "--config", config_file, "gradient_accumulation_steps=3")
    tune(*recipe)
    tune(*recipe, "output_dir=other", "optimizer_in_bwd=True")
    assert metrics(tmp_path / "other", "loss") == metrics(tmp_path / "out", "loss")
    assert metrics(tmp_path / "other", "grad_norm") == pytest.approx(metrics(tmp_path / "out", "grad_norm"), rel=1e-5)
    expected = load_file(tmp_path / "out" / "epoch_0" / "model.safetensors")
    for name, value in load_file(tmp_path / "other" / "epoch_0" / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name


def test_mixed_precision_in_fp16_skips_an_overflow_and_resumes_with_its_scale(tune, config_file, tmp_path, probe):
    recipe = ("run", "full_finetune_single_device", "--config", config_file, "save_every_n_steps=5")
    tune(*recipe, "output_dir=fp32")
    recipe += ("dtype=fp16", "mixed_precision=True")
    tune(*recipe, *probe(4, factor=1e30))
    tune(*recipe, *probe(99), "output_dir=resumed", f"resume_from_checkpoint={tmp_path}/out/step_5")
    losses = metrics(tmp_path / "out", "loss")
    assert losses[:3] == pytest.approx(metrics(tmp_path / "fp32", "loss")[:3], rel=1e-3)
    assert metrics(tmp_path / "resumed", "loss") == losses[5:]
    assert metrics(tmp_path / "out", "skipped_steps")[:5] == [0, 0, 0, 1, 1]
    progress = json.loads((tmp_path / "out/step_5/resume/trainer.json").read_text())["progress"]
    assert (progress["scaler"]["scale"], progress["scaler"]["_growth_tracker"]) == (32768, 1)
