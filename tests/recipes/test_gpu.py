"""Whole runs on a GPU; the other files of this folder test what they share with a CPU's runs."""

import json
import warnings

import pytest
import torch

from tests.recipes.conftest import common_keys, metrics
from tests.recipes.test_waits_of_a_step import FULL, LORA, recipe_of

pytestmark = pytest.mark.gpu
STEPS = 6


@pytest.fixture
def run(tiny, tune, tmp_path):
    """Run a recipe on the GPU; return the losses of its steps."""

    def steps(method: str, *changes: str, out: str = "out") -> list[float]:
        path = tmp_path / f"{out}.yaml"
        optimizer = "optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-2}\n"
        path.write_text(common_keys(tiny, tmp_path / out) + optimizer + (FULL if method == "full" else LORA))
        words = ["device=cuda", "batch_size=4", f"max_steps_per_epoch={STEPS}", *changes]
        tune("run", f"{method}_finetune_single_device", "--config", path, *words)
        return metrics(tmp_path / out, "loss")

    return steps


FP16 = ("dtype=fp16", "adapter_dtype=fp32")
SPARING = ("enable_activation_checkpointing=True", "enable_activation_offloading=True", "model.mlp_tile=16")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", ()),
        ("lora", ("dtype=bf16", "collate=padded")),
        ("lora", ("dtype=bf16", "dataset.packed=True", "tokenizer.max_seq_len=64")),
        ("lora", ("dtype=bf16", "model.quantize_base=True")),
        ("lora", ("dtype=bf16", "model.quantize_base=True", *SPARING)),
        ("lora", ("dtype=bf16", "model.use_dora=True", "memory_budget=auto")),
        ("lora", FP16),
        ("full", ("dtype=fp16", "mixed_precision=True", "clip_grad_norm=1.0")),
        ("full", ("dtype=bf16", "optimizer._component_=torchtune_lite.optim.PagedAdamW")),
        ("full", ("dtype=bf16", "optimizer_in_bwd=True")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "fp32",
)
def test_a_run_learns_and_saves_what_it_has_learnt(run, tmp_path, method, changes):
    losses = run(method, *changes)
    assert len(losses) >= 2 and losses[-1] < losses[0]
    assert (tmp_path / "out" / "epoch_0" / "model.safetensors").is_file()


def test_the_losses_are_those_of_a_cpu(run):
    assert run("lora", out="gpu") == pytest.approx(run("lora", "device=cpu", out="cpu"), rel=1e-3)


def test_a_resumed_run_goes_on_as_the_unbroken_one(run):
    unbroken = run("lora", "epochs=2", "model.lora_dropout=0.1", out="unbroken")
    run("lora", "epochs=1", "model.lora_dropout=0.1")
    resumed = run("lora", "epochs=2", "model.lora_dropout=0.1", "resume_from_checkpoint=True")
    assert len(resumed) == 2 * STEPS and resumed == pytest.approx(unbroken, rel=1e-2)


def test_the_demo_runs(tune, tmp_path):
    words = ["device=cuda", "dtype=bf16", "metric_logger=null", f"output_dir={tmp_path}/demo", "log_every_n_steps=1"]
    tune("run", "lora_finetune_single_device", "--config", "demo/address_qlora", *words, "max_steps_per_epoch=60")
    losses = metrics(tmp_path / "demo", "loss")
    assert losses[-1] < losses[0] / 2
    row = json.loads((tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row.get("mfu", 0.0) >= 0.0


@pytest.mark.parametrize(
    ("method", "changes", "waits"),
    [
        ("lora", ("gradient_accumulation_steps=3", "dtype=bf16", "model.quantize_base=True"), 1),
        ("lora", (*FP16, "collate=padded", "clip_grad_norm=1.0"), 1),
        ("full", ("dtype=bf16",), 1),
        ("full", ("dtype=bf16", "optimizer_in_bwd=True"), 2),
    ],
)
def test_torch_counts_as_many_waits_in_a_step_as_the_meta_device(tiny, tmp_path, method, changes, waits):
    recipe = recipe_of(tiny, tmp_path, method, "device=cuda", *changes)
    recipe.setup()
    recipe.train()  # the first steps compile and fill caches
    recipe.run.total_steps *= 2
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            recipe.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recipe.run.close()
    synchronising = [str(each.message) for each in seen if "synchroniz" in str(each.message)]
    assert len(synchronising) == waits * recipe.run.data.steps_per_epoch, synchronising
