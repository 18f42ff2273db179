"""A run that is stopped, or asked to save, or meets numbers that are not finite; real processes and real signals."""

import json
from pathlib import Path

import pytest

from tests.recipes.conftest import Tiny, common_keys, digest, metrics
from torchtune_lite import checkpoint


@pytest.fixture
def run(tiny: Tiny, tune, tmp_path: Path):
    """Runs a recipe of 6 steps in 2 epochs, of up to 3 micro-batches each, with dropout where it has adapters."""
    text = (
        common_keys(tiny, tmp_path / "out")
        + """
batch_size: 4
gradient_accumulation_steps: 3
epochs: 2
optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-2}
lr_scheduler:
  _component_: torchtune_lite.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 2
verify_rows: null
"""
    )
    (tmp_path / "full.yaml").write_text(text + "model: {_component_: torchtune_lite.models.llama2.llama2}\n")
    (tmp_path / "lora.yaml").write_text(
        text
        + """
save_adapter_weights_only: True
model: {_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj], lora_dropout: 0.2}
"""
    )

    def run(*words: object, kind: str = "lora", code: int = 0):
        result = tune("run", f"{kind}_finetune_single_device", "--config", f"{kind}.yaml", *words, check=False)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return run


def last_line(result) -> str:
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "name", "code"), [("lora", "SIGINT", 130), ("lora", "SIGTERM", 143), ("full", "SIGTERM", 143)]
)
def test_a_stop_in_the_middle_of_a_window_is_resumed_to_the_bit(run, probe, tmp_path, kind, name, code):
    run(kind=kind)
    stopped = run("output_dir=stopped", *probe(5, send=[name]), kind=kind, code=code)
    assert last_line(stopped) == (
        f"tune: stopped by {name} after step 1; saved {tmp_path}/stopped/step_1; "
        "continue with resume_from_checkpoint=True"
    )
    assert [folder.name for folder in checkpoint.published(tmp_path / "stopped")] == ["step_1"]
    run("output_dir=stopped", "resume_from_checkpoint=True", kind=kind)
    assert digest(tmp_path / "stopped", "epoch_1") == digest(tmp_path / "out", "epoch_1")


def test_the_draws_of_the_discarded_micro_batches_would_count(run, probe, tmp_path):
    """Negative control: saved with the random states of the moment, the resumed run is another one."""
    run()
    run("output_dir=stopped", *probe(5, send=["SIGINT"], keep_rng=True), code=130)
    run("output_dir=stopped", "resume_from_checkpoint=True")
    expected, resumed = digest(tmp_path / "out", "epoch_1"), digest(tmp_path / "stopped", "epoch_1")
    assert resumed["metrics"][0] == expected["metrics"][0] and resumed["metrics"][1:] != expected["metrics"][1:]


def test_stops_at_every_kind_of_place(run, probe, tiny, tmp_path):
    """In the first window, while validating (twice), and with the step saved already; then to the end."""
    words = [
        f"dataset_val={{_component_: torchtune_lite.datasets.instruct_dataset, source: {tiny.val}}}",
        "batch_size_val=4",
    ]
    words += ["run_val_every_n_steps=2", "save_every_n_steps=2"]
    run(*words)
    words.append("output_dir=stopped")
    assert "before the first step; nothing to save" in last_line(run(*words, *probe(2, send=["SIGTERM"]), code=143))
    assert not checkpoint.published(tmp_path / "stopped")
    validating = run(*words, *probe(7, send=["SIGINT"]), code=130)  # 6 micro-batches, then 2 of validation
    assert "after step 2; saved" in last_line(validating)
    words.append("resume_from_checkpoint=True")
    again = run(*words, *probe(1, send=["SIGTERM"]), code=143)
    assert "after step 2; saved" in last_line(again) and "INFO saved" not in again.stderr
    saved = run(*words, *probe(2 + 2, send=["SIGINT"]), code=130)  # in the last micro-batch of the first epoch
    assert "after step 3; saved" in last_line(saved) and saved.stderr.count("INFO saved") == 1
    assert last_line(saved).count("epoch_0") == 1
    run(*words)
    expected, resumed = digest(tmp_path / "out", "epoch_1"), digest(tmp_path / "stopped", "epoch_1")
    assert resumed == expected
    assert [row["step"] for row in resumed["metrics"] if "val_loss" in row] == [2, 4, 6]
    best = [json.loads((tmp_path / name / "best.json").read_text()) for name in ("out", "stopped")]
    assert best[0] == best[1]


def test_a_second_sigint_leaves_without_a_checkpoint(run, probe, tmp_path):
    result = run(*probe(5, send=["SIGINT", "SIGINT"]), code=130)
    assert last_line(result) == "tune: interrupted"
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_sigusr1_saves_and_goes_on(run, probe, tmp_path):
    run(*probe(5, send=["SIGUSR1"]))
    assert [folder.name for folder in checkpoint.published(tmp_path / "out")] == ["epoch_0", "epoch_1", "step_2"]
    assert len(metrics(tmp_path / "out", "loss")) == 6
