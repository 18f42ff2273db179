"""Runs that are stopped, meet numbers that are not finite or a full disk, end early, or go on later; real processes."""

import json
import os
import random
import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.recipes.conftest import Tiny, common_keys, digest, metrics
from torchtune_lite import checkpoint


def runner(tiny: Tiny, tune_in, folder: Path):
    """Return a function that runs, from `folder`, a recipe of 6 steps in 2 epochs, of up to 3 micro-batches each."""
    text = (
        common_keys(tiny, folder / "out")
        + """
batch_size: 4
gradient_accumulation_steps: 3
epochs: 2
optimizer: {_component_: torch.optim.AdamW, lr: 1.0e-2}
lr_scheduler:
  _component_: torchtune_lite.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 2
verify_saves: null
"""
    )
    (folder / "full.yaml").write_text(text + "model: {_component_: torchtune_lite.models.llama2.llama2}\n")
    (folder / "lora.yaml").write_text(
        text
        + """
save_adapter_weights_only: True
model: {_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj], lora_dropout: 0.2}
"""
    )

    def run(*words: object, kind: str = "lora", code: int = 0):
        words = ["run", f"{kind}_finetune_single_device", "--config", f"{kind}.yaml", *words]
        result = tune_in(folder, *words, check=False)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def run(tiny: Tiny, tune_in, tmp_path: Path):
    return runner(tiny, tune_in, tmp_path)


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tune_in, tmp_path_factory: pytest.TempPathFactory):
    """Return the digest of an uninterrupted run of each kind; each runs once."""

    @cache
    def whole(kind: str = "lora") -> dict[str, object]:
        folder = tmp_path_factory.mktemp(kind)
        runner(tiny, tune_in, folder)(kind=kind)
        return digest(folder / "out", "epoch_1")

    return whole


def last_line(result) -> str:
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "name", "code"), [("lora", "SIGINT", 130), ("lora", "SIGTERM", 143), ("full", "SIGTERM", 143)]
)
def test_a_stop_in_the_middle_of_a_window_is_resumed_to_the_bit(run, whole, probe, tmp_path, kind, name, code):
    stopped = run("output_dir=stopped", *probe(5, send=[name]), kind=kind, code=code)
    assert last_line(stopped) == (
        f"tune: stopped by {name} after step 1; saved {tmp_path}/stopped/step_1; "
        "continue with resume_from_checkpoint=True"
    )
    assert [folder.name for folder in checkpoint.published(tmp_path / "stopped")] == ["step_1"]
    run("output_dir=stopped", "resume_from_checkpoint=True", kind=kind)
    assert digest(tmp_path / "stopped", "epoch_1") == whole(kind)


def test_the_draws_of_the_discarded_micro_batches_would_count(run, whole, probe, tmp_path):
    """Negative control: saved with the current random states, the resumed run differs."""
    run("output_dir=stopped", *probe(5, send=["SIGINT"], keep_rng=True), code=130)
    run("output_dir=stopped", "resume_from_checkpoint=True")
    expected, resumed = whole(), digest(tmp_path / "stopped", "epoch_1")
    assert resumed["metrics"][0] == expected["metrics"][0] and resumed["metrics"][1:] != expected["metrics"][1:]


def test_stops_at_every_kind_of_place(run, probe, tiny, tmp_path):
    """In the first window, while validating (four times), with the step saved already, in a save; then to the end."""
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
    assert f"after step 3; saved {tmp_path}/stopped/step_3" in last_line(saved), "it validates before it saves epoch_0"
    saving = run(*words, *probe(2 + 1, send=["SIGTERM"], in_save=True), code=143)
    assert "after step 4; saved" in last_line(saving) and saving.stderr.count("INFO saved") == 2
    last = run(*words, *probe(3 + 2, send=["SIGTERM"]), code=143)  # in the last micro-batch of all
    assert f"after step 6; saved {tmp_path}/stopped/step_6" in last_line(last)
    run(*words)
    expected, resumed = digest(tmp_path / "out", "epoch_1"), digest(tmp_path / "stopped", "epoch_1")
    assert resumed == expected
    assert [row["step"] for row in resumed["metrics"] if "val_loss" in row] == [2, 3, 4, 6]
    best = [json.loads((tmp_path / name / "best.json").read_text()) for name in ("out", "stopped")]
    assert best[0] == best[1]


def test_a_stop_before_training_leaves_nothing_and_no_traceback(run, probe, tmp_path):
    probe()
    for name, code in (("SIGINT", 130), ("SIGTERM", -15)):  # a shell says 143
        run("dataset={_component_: probe.Signalled}", f"dataset.send={name}", code=code)
        assert not (tmp_path / "out").exists()


def run_through_and_stopped_twice(run, probe, words, at):
    """Run into `out`; and into `stopped`, stopped at these calls of the loss, each counted from a start."""
    run(*words)
    words = [*words, "output_dir=stopped"]
    run(*words, *probe(at[0], send=["SIGTERM"]), code=143)
    words.append("resume_from_checkpoint=auto")
    run(*words, *probe(at[1], send=["SIGINT"]), code=130)
    run(*words)


def test_a_run_of_dora_on_nf4_over_a_mixture_of_data_sets_is_stopped_twice(run, probe, tiny, tmp_path):
    sets = [
        f"{{_component_: torchtune_lite.datasets.instruct_dataset, source: {path}}}" for path in (tiny.train, tiny.val)
    ]
    words = ["model.quantize_base=True", "model.use_dora=True", f"dataset=[{','.join(sets)}]", "dataset_weights=[1,3]"]
    run_through_and_stopped_twice(run, probe, words, at=(9, 4))
    assert folders(tmp_path / "stopped") == ["epoch_0", "epoch_1", "step_3", "step_5"]
    assert digest(tmp_path / "stopped", "epoch_1") == digest(tmp_path / "out", "epoch_1")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_over_packs_of_a_stream_is_stopped_twice(run, probe, tiny, tmp_path, num_workers):
    """A turn of the two files takes about 5 of the 8 steps: the run is stopped in the first turn and in the second."""
    words = ["dataset.source=json", f"dataset.data_files=[{tiny.train},{tiny.val}]", "dataset.streaming=True"]
    words += ["dataset.packed=True", "tokenizer.max_seq_len=32", "batch_size=2", f"num_workers={num_workers}"]
    words += ["max_steps_per_epoch=4", "verify_saves=all"]
    run_through_and_stopped_twice(run, probe, words, at=(8, 13))
    assert folders(tmp_path / "stopped") == ["epoch_0", "epoch_1", "step_2", "step_6"]
    assert digest(tmp_path / "stopped", "epoch_1") == digest(tmp_path / "out", "epoch_1")


@pytest.mark.parametrize("where", [{}, {"in_save": True}], ids=["in a step", "in a save"])
def test_a_second_sigint_leaves_without_a_checkpoint(run, probe, tmp_path, where):
    result = run(*probe(3, send=["SIGINT", "SIGINT"], **where), code=130)
    assert last_line(result) == "tune: interrupted"
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_sigusr1_saves_and_goes_on(run, probe, tmp_path):
    run(*probe(5, send=["SIGUSR1"]))
    assert [folder.name for folder in checkpoint.published(tmp_path / "out")] == ["epoch_0", "epoch_1", "step_2"]
    assert len(metrics(tmp_path / "out", "loss")) == 6


def folders(output_dir: Path) -> list[str]:
    return [folder.name for folder in checkpoint.published(output_dir)]


def rows_of_step(number: int, tiny: Tiny) -> set[str]:
    """The places of the rows that a 3-row run's metrics leave out, in the order of seed 7, epoch 0."""
    order = list(range(29))
    random.Random("7/0").shuffle(order)
    return {f"{tiny.train}:{row + 1}" for row in order[(number - 1) * 12 : number * 12]}


@pytest.mark.parametrize("factor", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(run, whole, probe, tiny, tmp_path, factor):
    result = run("save_every_n_steps=1", *probe(5, factor=factor), code=6)
    line = last_line(result)
    assert line.startswith(f"tune: error: step 2: loss is {factor} and grad_norm is nan (rows: {tiny.train}:")
    assert set(line.partition("(rows: ")[2].partition(")")[0].split(", ")) == rows_of_step(2, tiny)
    assert folders(tmp_path / "out") == ["step_1"]
    run("resume_from_checkpoint=True")
    assert digest(tmp_path / "out", "epoch_1") == whole()


def test_skip_leaves_out_the_step_counts_it_and_stops_at_three_in_a_row(run, probe, tmp_path):
    words = ["on_nonfinite=skip", "save_every_n_steps=1"]
    result = run(*words, *probe(5, factor="nan"))
    assert result.stderr.count("the step is skipped, 1 in all") == 1
    rows = digest(tmp_path / "out", "epoch_1")["metrics"]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, True, False, False, False, False]
    before, after = (digest(tmp_path / "out", name) for name in ("step_1", "step_2"))
    name = "adapter/adapter_model.safetensors"
    assert before[f"step_1/{name}"] == after[f"step_2/{name}"]
    assert after["progress"]["skipped_steps"] == 1
    result = run(*words, "output_dir=three", *probe(4, 7, 9, factor="nan"), code=6)
    assert "3 steps in a row" in last_line(result) and "step 4" in last_line(result)


def test_a_step_without_labels_leaves_the_weights_alone(run, probe, tmp_path):
    """The second step has no label, nor has the first micro-batch of the third."""
    run("dataset={_component_: probe.FewLabels}", "shuffle=False", "save_every_n_steps=1", *probe())
    losses = metrics(tmp_path / "out", "loss")
    assert losses[1] == 0 and losses[0] > 0 and losses[2] > 0
    one, two, three = (digest(tmp_path / "out", name) for name in ("step_1", "step_2", "epoch_0"))
    name = "adapter/adapter_model.safetensors"
    assert one[f"step_1/{name}"] == two[f"step_2/{name}"] != three[f"epoch_0/{name}"]


def test_patience_ends_the_run_and_the_best_is_kept_and_named(run, tiny, tmp_path):
    words = [f"dataset_val={{_component_: torchtune_lite.datasets.instruct_dataset, source: {tiny.val}}}"]
    words += ["run_val_every_n_steps=1", "save_every_n_steps=1", "epochs=20", "keep_last_n_checkpoints=2"]
    words += ["optimizer.lr=0.2", "lr_scheduler=null"]  # soon worse
    result = run(*words, "patience=3")
    losses = metrics(tmp_path / "out", "val_loss")
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 3 < 60
    [line] = [line for line in result.stderr.splitlines() if "early stop" in line]
    assert f"early stop after step {len(losses)}; best val_loss {losses[best]:.4f}" in line
    written = json.loads((tmp_path / "out" / "best.json").read_text())
    assert (written["step"], written["val_loss"]) == (best + 1, losses[best])
    kept = {trained["global_step"] for trained in progresses(tmp_path / "out")}
    assert kept == {best + 1, len(losses) - 1, len(losses)}
    run(*words, "patience=3", "resume_from_checkpoint=True")
    assert len(metrics(tmp_path / "out", "val_loss")) == len(losses), "nothing was left to do"
    run(*words, "patience=4", "resume_from_checkpoint=True")
    assert len(metrics(tmp_path / "out", "val_loss")) > len(losses)


def progresses(output_dir: Path) -> list[dict]:
    paths = [folder / "resume" / "trainer.json" for folder in checkpoint.published(output_dir)]
    return [json.loads(path.read_text())["progress"] for path in paths]


def test_patience_without_validation_is_refused(run, tmp_path):
    assert "patience" in last_line(run("patience=3", code=2))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(run, whole, probe, tmp_path):
    result = run("save_every_n_steps=1", "output_dir=full", *probe(full=[4, 7]))  # in step 2
    [line] = [line for line in result.stderr.splitlines() if " ERROR " in line]
    assert "step_2 was not saved" in line and line.endswith("training goes on until the next save")
    assert folders(tmp_path / "full") == ["epoch_0", "epoch_1", "step_1", "step_4", "step_5"]
    assert "saved full/step_2" not in result.stderr
    assert digest(tmp_path / "full", "epoch_1") == whole()


def test_a_disk_that_stays_full_ends_the_run_at_the_second_save(run, probe, tmp_path):
    result = run("save_every_n_steps=1", *probe(full=[4, 0]), code=5)
    assert result.stderr.count(" ERROR ") == 1 and "epoch_0 was not saved" in last_line(result)
    assert folders(tmp_path / "out") == ["step_1"]
    result = run("output_dir=last", "epochs=1", *probe(full=[7, 0]), code=5)
    assert " ERROR " not in result.stderr and "epoch_0 was not saved" in last_line(result)


@pytest.mark.parametrize(
    "words", [["model.quantize_base=True", "save_adapter_weights_only=False"], []], ids=["qlora", "full"]
)
def test_checkpoints_written_in_the_background_are_the_same(run, tmp_path, words):
    kind = "lora" if words else "full"
    words = [*words, "save_every_n_steps=1", "verify_saves=all"]
    run(*words, kind=kind)
    result = run(*words, "output_dir=async", "enable_async_checkpointing=True", kind=kind)
    assert result.stderr.count("INFO saved") == 6
    for name in folders(tmp_path / "out"):
        assert digest(tmp_path / "async", name) == digest(tmp_path / "out", name)


def test_a_finished_run_goes_on_with_more_epochs(run, tmp_path):
    words = ["lr_scheduler=null", "tokenizer.prompt_template={user: ['', ' = ']}"]
    run(*words, "epochs=3")
    run(*words, "output_dir=parts", "epochs=1")
    done = run(*words, "output_dir=parts", "epochs=1", "resume_from_checkpoint=True")
    assert "after step 3\n" in done.stderr and folders(tmp_path / "parts") == ["epoch_0"]
    assert "the run is finished, step 3 of 3 is done; to go on, set epochs: 2 or more" in done.stderr
    result = run(*words, "output_dir=parts", "epochs=3", "resume_from_checkpoint=True")
    assert "WARNING" not in result.stderr
    assert digest(tmp_path / "parts", "epoch_2") == digest(tmp_path / "out", "epoch_2")


def test_a_template_that_writes_the_time_writes_one_in_the_whole_run(run, tiny, char_model, tmp_path):
    (tmp_path / "base").mkdir()
    shutil.copyfile(char_model, tmp_path / "base/tokenizer.model")
    (tmp_path / "base/chat_template.jinja").write_text(
        "{% for m in messages %}{{ bos_token if m.role == 'user' }}{{ strftime_now('%H%M%S%d%m') + ' ' + m.content }}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    words = ["tokenizer.prompt_template=chat_template", "tokenizer.path=base/tokenizer.model"]
    run(*words, "epochs=1")
    run(*words, "epochs=2", "resume_from_checkpoint=True")
    dates = {checkpoint.start_date(tmp_path / "out" / name, "none") for name in ("epoch_0", "epoch_1")}
    assert len(dates) == 1
    other = ["resume_from_checkpoint=True", "epochs=3", "tokenizer.chat_template_kwargs={strftime_now: 2024-02-29}"]
    assert "dataset was 29 samples with hash" in last_line(run(*words, *other, code=4))


def test_another_run_is_not_resumed(run, tiny, tmp_path):
    run("epochs=1")
    resume = ["resume_from_checkpoint=True", "epochs=2"]
    lines = tiny.train.read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[1:]))
    (tmp_path / "same.jsonl").write_text("".join(lines))
    shutil.copytree(tiny.checkpoint, tmp_path / "base")
    with (tmp_path / "base" / "model.safetensors").open("r+b") as weights:
        weights.seek(-100, os.SEEK_END)
        weights.write(b"xx")
    for word, change in (
        ("batch_size=2", "batch_size was 4, is 2"),
        ("model.lora_alpha=3", "model.lora_alpha was None, is 3"),
        (f"dataset.source={tmp_path}/fewer.jsonl", "dataset was 29 samples with hash"),
        ("tokenizer.max_seq_len=8", "dataset was 29 samples with hash"),
        ("checkpointer.checkpoint_dir=base", "the weights in checkpointer.checkpoint_dir have changed (hash was "),
    ):
        line = last_line(run(*resume, word, code=4))
        assert "epoch_0 cannot be resumed with this config: " in line and change in line
    assert folders(tmp_path / "out") == ["epoch_0"]
    result = run(*resume, f"dataset.source={tmp_path}/same.jsonl", "optimizer.lr=5e-3")
    assert "optimizer.lr was 0.01, is 0.005" in result.stderr
    assert metrics(tmp_path / "out", "lr")[3] <= 5e-3
