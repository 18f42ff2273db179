"""Runs with ~ in every path: all files are read and written at home, and no folder is called ~."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.error_files import BASE, ROW
from torchtune_lite.cli.main import main

CONFIG = """\
output_dir: ~/runs/a
model: {_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj], lora_rank: 2}
tokenizer:
  _component_: torchtune_lite.models.llama2.llama2_tokenizer
  path: ${checkpointer.checkpoint_dir}/tokenizer.model
  prompt_template: null
checkpointer:
  _component_: torchtune_lite.training.FullModelHFCheckpointer
  checkpoint_dir: ~/base
  output_dir: ~/unused
dataset: {_component_: torchtune_lite.datasets.instruct_dataset, source: json, data_files: {train: ["~/rows*.jsonl"]}}
dataset_val: {_component_: torchtune_lite.datasets.instruct_dataset, source: ~/rows.jsonl}
optimizer: {_component_: torch.optim.AdamW, lr: 1e-3}
metric_logger: {_component_: torchtune_lite.training.DiskLogger, log_dir: ~/logs, filename: log.txt}
profiler: {_component_: torchtune_lite.training.Profiler, output_dir: ~/profile, wait_steps: 0, warmup_steps: 0}
device: cpu
dtype: fp32
seed: 0
"""


@pytest.fixture
def home(folder, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(BASE, home / "base")
    (home / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (home / "my.yaml").write_text(CONFIG)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return home


def tune(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tune", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code
    assert os.listdir() == []


def test_nothing_lies_in_a_folder_called_tilde(home, monkeypatch, capsys):
    run = ["run", "lora_finetune_single_device", "--config=~/my.yaml"]
    tune(monkeypatch, *run)
    assert {"a", "logs", "profile"} <= {path.name for path in (*(home / "runs").iterdir(), *home.iterdir())}
    assert (home / "logs/log.txt").read_text() and list((home / "profile").iterdir())
    tune(monkeypatch, *run, "resume_from_checkpoint=~/runs/a/epoch_0", "epochs=2", "~profiler")
    assert (home / "runs/a/epoch_1").is_dir()
    adapter = "checkpointer.adapter_checkpoint=~/runs/a/epoch_1/adapter"
    tune(monkeypatch, *run, "output_dir=~/runs/b", adapter, "save_adapter_weights_only=true", "~profiler")
    words = ["run", "generate", "--config", "generation", "model_dir=~/runs/a/epoch_1", "prompt=a"]
    tune(monkeypatch, *words, "max_new_tokens=1", "device=cpu", "tokenizer.prompt_template=null")
    words = ["run", "exact_match_eval", "--config", "demo/address_eval", "source=~/rows.jsonl", "output_dir=~/eval"]
    tune(monkeypatch, *words, "checkpointer.checkpoint_dir=~/base", "max_new_tokens=1", "device=cpu")
    assert (home / "eval/exact_match.json").is_file()
    assert not list(home.rglob("~*"))


def test_a_copy_lies_at_home_too(home, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tune", "cp", "generation", "~/copy.yaml"])
    main()
    assert (home / "copy.yaml").is_file() and not Path("~").exists()
