"""The records of a run with two validation sets and a drawn seed: its validations, metrics, best checkpoint and log."""

import json

import pytest
import yaml

from tests.recipes.conftest import common_keys, metrics
from torchtune_lite import checkpoint

OWN = """
import random

import numpy
import torch

from torchtune_lite.datasets import instruct_dataset


class Drawing:
    # Rows, each of whose readings draws from every generator.
    def __init__(self, tokenizer, source):
        self.rows = instruct_dataset(tokenizer, source=source)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        random.random(), numpy.random.rand(), torch.rand(1)
        return self.rows[index]
"""


@pytest.fixture
def lora(tiny, tune, tmp_path):
    """Run 8 steps per epoch, saving every third, validating every fifth and logging every fourth."""
    (tmp_path / "own.py").write_text(OWN)
    short = tiny.val.read_text().splitlines(keepends=True)[:3]
    (tmp_path / "short.jsonl").write_text("".join(short))
    (tmp_path / "lora.yaml").write_text(
        common_keys(tiny, tmp_path / "out").replace("seed: 7", "seed: null").replace("cpu", "auto")
        + f"""
model: {{_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj], lora_dropout: 0.2}}
optimizer: {{_component_: torch.optim.AdamW, lr: 1.0e-2}}
dataset_val:
  drawing: {{_component_: own.Drawing, source: {tiny.val}}}
  short: {{_component_: torchtune_lite.datasets.instruct_dataset, source: {tmp_path}/short.jsonl}}
batch_size: 4
save_every_n_steps: 3
run_val_every_n_steps: 5
log_every_n_steps: 4
save_adapter_weights_only: True
verify_saves: null
"""
    )

    def run(*words, config="lora.yaml"):
        return tune("run", "lora_finetune_single_device", "--config", config, *words).stderr

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_validated_and_logged_when_it_is_due_and_can_be_repeated(lora, tmp_path, tiny):
    said, out = lora(), tmp_path / "out"

    validated = [row for row in rows(out) if "val_loss" in row]
    assert [row["step"] for row in validated] == [3, 5, 6, 8], "every fifth, before each save, at the end"
    assert [row["step"] for row in rows(out) if "loss" in row] == [3, 4, 5, 6, 8], "and every fourth"
    assert {"val_loss", "val_loss/drawing", "val_loss/short"} <= validated[0].keys()
    for row in validated:
        parts = sorted([row["val_loss/drawing"], row["val_loss/short"]])
        assert parts[0] < row["val_loss"] < parts[1] and f"step {row['step']}: val_loss {row['val_loss']:.4f}" in said
    saved = [row for row in validated if row["step"] != 5]
    best = min(saved, key=lambda row: row["val_loss"])
    assert json.loads((out / "best.json").read_text())["val_loss"] == best["val_loss"]
    assert [folder.name for folder in checkpoint.published(out)] == ["epoch_0", "step_3", "step_6"]

    terminal = [line.partition(" ")[2] for line in said.splitlines() if line[2:3] == ":"]
    log = [line.partition(" ")[2].partition(" ")[2] for line in (out / "run.log").read_text().splitlines()]
    assert terminal[0].startswith("INFO device: auto chose")
    assert log == terminal, "from the first line on"

    seed = yaml.safe_load((out / "config.yaml").read_text())["seed"]
    assert f"INFO seed: {seed} (drawn)" in terminal
    lora("output_dir=again", "~dataset_val", "log_every_n_steps=1", config="out/config.yaml")
    again = {row["step"]: row["loss"] for row in rows(tmp_path / "again")}
    assert [again[step] for step in (3, 4, 5, 6, 8)] == metrics(out, "loss"), "what a validation draws counts nowhere"

    rest = lora("output_dir=rest", f"resume_from_checkpoint={out}/step_6")
    assert f"INFO resuming from {out}/step_6 with seed {seed} after step 6\n" in rest
    assert [row["loss"] for row in rows(tmp_path / "rest") if "loss" in row] == metrics(out, "loss")[-1:]

    done = lora("resume_from_checkpoint=True")
    assert "WARNING the run is finished, step 8 of 8 is done; to go on, set epochs: 2 or more" in done
    assert rows(out)[-1]["step"] == 8


def test_the_answers_to_a_data_set_are_scored_on_the_way_and_change_nothing(lora, tmp_path, tiny):
    """It comes at each validation that is asked for, not at saves, and leaves weights and random states alone."""
    lora("seed=3", f"output_dir={tmp_path}/plain", "max_steps_per_epoch=6")
    asked = f"dataset_eval={{_component_: torchtune_lite.datasets.instruct_dataset, source: {tmp_path}/short.jsonl}}"
    said = lora("seed=3", asked, "max_steps_per_epoch=6")
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_f1" in row] == [5]
    assert "eval_exact_match 0." in said
    answers = [json.loads(line) for line in (tmp_path / "out/answers/step_5.jsonl").read_text().splitlines()]
    short = [json.loads(line) for line in (tmp_path / "short.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["expected"]) for row in answers] == [(row["input"], row["output"]) for row in short]
    assert all(row["answer"] for row in answers)
    assert metrics(tmp_path / "out", "loss") == metrics(tmp_path / "plain", "loss")
    assert metrics(tmp_path / "out", "val_loss") == metrics(tmp_path / "plain", "val_loss")

    lora("dataset_val=null", asked, f"output_dir={tmp_path}/alone", "run_val_every_n_steps=null", "epochs=1")
    assert len(metrics(tmp_path / "alone", "eval_f1")) == 1 and not (tmp_path / "alone/best.json").exists()
