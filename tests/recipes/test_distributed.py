"""Two processes that train together against one, which takes the same micro-batches in each step."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.conftest import Tiny, common_keys, digest, metrics
from torchtune_lite.checkpoint import published, verify

LORA = """
model:
  _component_: torchtune_lite.models.llama2.lora_llama2
  lora_attn_modules: [q_proj, v_proj]
  apply_lora_to_mlp: True
  lora_rank: 4
  lora_alpha: 8
"""
FULL = "model: {_component_: torchtune_lite.models.llama2.llama2}\n"
REST = """
dataset_val:
  _component_: torchtune_lite.datasets.instruct_dataset
  source: {val}
run_val_every_n_steps: 3
batch_size: 2
batch_size_val: 3
epochs: 2
clip_grad_norm: 1.0
optimizer: {{_component_: torch.optim.AdamW, lr: 1.0e-3}}
"""
METHODS = {
    "full": ("full_finetune_distributed", FULL, ["enable_activation_checkpointing=True"]),
    "LoRA": ("lora_finetune_distributed", LORA, ["num_workers=1"]),
    "DoRA, padded": ("lora_finetune_distributed", LORA, ["model.use_dora=True", "collate=padded", "optimizer.lr=1e-4"]),
    "QLoRA": ("lora_finetune_distributed", LORA, ["model.quantize_base=True", "save_adapter_weights_only=True"]),
}
DRAWING = ["model.lora_dropout=0.3", "optimizer._component_=torchtune_lite.optim.StochasticAdamW", "dtype=bf16"]


@pytest.fixture
def train(tiny: Tiny, tune_in, tmp_path: Path):
    """Trains in a folder of its own and gives its output_dir; `total` is the number of micro-batches in a step."""

    def run(name: str, method: str, *changes: str, processes: int = 1, total: int = 4, **how):
        recipe, model, more = METHODS[method]
        path = tmp_path / f"{name}.yaml"
        path.write_text(common_keys(tiny, tmp_path / name) + model + REST.format(val=tiny.val))
        words = [*more, f"gradient_accumulation_steps={total // processes}", *changes]
        result = tune_in(tmp_path, "run", recipe, "--config", path, *words, processes=processes, **how)
        return result if how else tmp_path / name

    return run


def assert_same(one: Path, two: Path, names=("loss", "grad_norm", "val_loss"), atol=1e-5):
    for name in names:
        expected = metrics(one, name)
        assert len(expected) > 1
        torch.testing.assert_close(
            torch.tensor(metrics(two, name)), torch.tensor(expected), rtol=atol, atol=atol, msg=name
        )


@pytest.mark.parametrize("method", METHODS)
def test_loss_norm_and_weights_are_those_of_one_process(train, method):
    """Whether each process holds the whole model, or a share of its weights."""
    one = train("one", method)
    folder = "epoch_1/adapter/adapter_model.safetensors" if method != "full" else "epoch_1/model.safetensors"
    summary = json.loads((one / "run.json").read_text())
    for data in ("ddp", "fsdp"):
        two = train(data, method, f"parallel.data={data}", processes=2)
        assert_same(one, two)
        assert len(metrics(two, "loss")) == 8  # 15 micro-batches an epoch: in its last step one process has one of two
        expected, found = load_file(one / folder), load_file(two / folder)
        assert max((found[name] - expected[name]).abs().max() for name in expected) < 2e-5
        verify(two / "epoch_1")
        assert json.loads((two / "run.json").read_text())["label_tokens"] == summary["label_tokens"]
        assert sorted(path.name for path in two.iterdir()) == sorted([*(path.name for path in one.iterdir()), "logs"])
        assert "trainable params" in (two / "logs" / "rank_1.log").read_text()


def test_a_process_without_a_label_changes_nothing(train, probe):
    data = ["dataset={_component_: probe.FewLabels}", "shuffle=False", "batch_size=4", "max_steps_per_epoch=4"]
    one, two = train("one", "LoRA", *data, total=2), train("two", "LoRA", *data, processes=2, total=2)
    assert_same(one, two)
    assert 0.0 in metrics(one, "loss") and metrics(two, "loss")[1] > 0


def test_several_data_sets_and_a_stream_are_shared_out(train, tiny):
    part = "{{_component_: torchtune_lite.datasets.instruct_dataset, source: {}}}".format
    several = [f"dataset=[{part(tiny.train)}, {part(tiny.val)}]", "dataset_val=null"]
    assert_same(
        train("one", "LoRA", *several),
        train("two", "LoRA", *several, processes=2),
        names=("loss", "loss/train", "loss/val"),
    )
    files = tiny.train.parent / "parts"
    files.mkdir(exist_ok=True)
    for number, source in enumerate((tiny.train, tiny.val, tiny.train)):
        (files / f"{number}.jsonl").write_text(source.read_text())
    words = [f"dataset.source={files}", "dataset.streaming=True", "dataset_val=null", "max_steps_per_epoch=5"]
    assert_same(train("one stream", "LoRA", *words), train("two stream", "LoRA", *words, processes=2), names=("loss",))


@pytest.mark.parametrize("data", ["ddp", "fsdp"])
def test_a_resumed_run_is_that_which_went_on(train, tmp_path, data):
    """Random states are those of each process: dropout differs between them, what is drawn for one weight does not."""
    words = [
        *DRAWING,
        f"parallel.data={data}",
        "save_adapter_weights_only=True",
        "dataset_val=null",
        "save_every_n_steps=3",
    ]
    whole = train("whole", "LoRA", *words, processes=2)
    again = train("again", "LoRA", *words, "epochs=1", "max_steps_per_epoch=4", processes=2)
    (again / "epoch_0").rename(tmp_path / "away")
    train("again", "LoRA", *words, "resume_from_checkpoint=True", processes=2)
    assert digest(again, "epoch_1") == digest(whole, "epoch_1")
    states = json.loads((whole / "epoch_1" / "resume" / "rng.json").read_text())["processes"]
    assert len(states) == 2 and states[0]["torch"] != states[1]["torch"]


def test_a_run_goes_on_in_another_number_of_processes(train, tmp_path):
    one = train("one", "LoRA", "save_every_n_steps=3")
    for name, before, after in (("less", 2, 1), ("more", 1, 2)):
        folder = train(name, "LoRA", "save_every_n_steps=3", "epochs=1", processes=before)
        (folder / "epoch_0").rename(tmp_path / f"away {name}")
        train(name, "LoRA", "resume_from_checkpoint=True", processes=after)
        assert_same(one, folder)
        assert "dropout differs" in (folder / "run.log").read_text()
    refused = train("less", "LoRA", "resume_from_checkpoint=True", processes=2, total=8, check=False)
    assert refused.returncode == 4
    assert "gradient_accumulation_steps of all processes was 4, is 8" in refused.stderr


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (
            "optimizer_in_bwd=True parallel.data=ddp",
            "optimizer_in_bwd: True is not served with 2 processes: it steps before gradients are summed",
        ),
        ("device=cuda:0", "device: cuda:0 is one device, and several processes run; set device: cuda, cpu or auto"),
        (
            "memory_budget=auto parallel.data=ddp",
            "memory_budget: auto is not served with 2 processes: it counts on all that is free; give GB",
        ),
        ("dtype=fp16", "dtype: fp16 is not served with 2 processes: it has a loss scale of one process"),
        ("memory_budget=4", "memory_budget is not served where processes share the weights (parallel.data: fsdp); set"),
        ("enable_async_checkpointing=True", "enable_async_checkpointing: True is not served where processes share"),
        ("parallel.replicas=3", "parallel.data: auto with 3 replicas of 2 processes is not served; replicas must"),
        ("parallel.replicas=2", "parallel.data: auto with 2 replicas of 2 processes is not served; replicas must"),
        ("parallel.replicas=3 parallel.data=ddp", "parallel.replicas: 3 is not served with 2 processes: it is for"),
    ],
)
def test_what_is_not_served_is_refused(train, change, answer):
    result = train("refused", "LoRA", *change.split(), processes=2, check=False)
    assert result.returncode == 2 and answer in result.stderr


@pytest.fixture
def launch(tmp_path, tiny: Tiny):
    """Starts a real training of many steps in two processes by `tune run`."""
    config = tmp_path / "long.yaml"
    config.write_text(common_keys(tiny, tmp_path / "out") + LORA + REST.format(val=tiny.val))
    (tmp_path / "many.jsonl").write_text(tiny.train.read_text() * 100)
    words = ["run", "--nproc_per_node", "2", "lora_finetune_distributed", "--config", str(config)]
    words += [f"dataset.source={tmp_path}/many.jsonl"]
    words += ["keep_last_n_checkpoints=2", "dataset_val=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = []

    def start(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torchtune_lite", *words, *more]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Reads what a run says up to a line with this text."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError("".join(lines))


def last_line(process: subprocess.Popen[str]) -> str:
    lines = [line for line in process.communicate(timeout=300)[1].splitlines() if line.startswith("tune: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_saves_stops_goes_on_and_is_killed(launch, tmp_path):
    out = tmp_path / "out"
    run = launch()
    while not (out / "metrics.jsonl").exists() or not metrics(out, "loss"):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    run.send_signal(signal.SIGUSR1)
    assert re.search(rf"saved {out}/step_\d+", wait_for(run, "saved"))
    run.send_signal(signal.SIGINT)
    stopped = re.fullmatch(
        rf"tune: stopped by SIGINT after step \d+; saved ({out}/step_\d+); continue with .*", last_line(run)
    )
    assert run.returncode == 130
    verify(stopped[1])

    run = launch("resume_from_checkpoint=True", "save_every_n_steps=10")
    assert f"resuming from {stopped[1]} with seed 7" in wait_for(run, "resuming from")
    wait_for(run, "saved")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    second = next(pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    assert f"rank 1 (pid {second}) was killed by SIGKILL, out of memory, perhaps; go on" in last_line(run)
    assert run.returncode == 8
    assert all(verify(folder) is None for folder in published(out)) and len(published(out)) == 2
