import json
import logging
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from torchtune_lite.checkpoint import (
    FullModelHFCheckpointer,
    check_resumable,
    gather,
    restore,
    run_facts,
    start_date,
)
from torchtune_lite.checkpoint.formats import safetensors_stream
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import llama2
from torchtune_lite.optim.schedules import get_cosine_schedule_with_warmup
from torchtune_lite.peft import dequantize

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}


class Run:
    """A training loop in small: dropout, clipping and data drawn from the global generators."""

    def __init__(self, hf_base, build, *, amsgrad=False, lr=1e-2, checkpointer=None, **options) -> None:
        self.checkpointer = checkpointer or FullModelHFCheckpointer(hf_base.dir)
        self.model = build(self.checkpointer, **options).train()
        self.params = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=lr, amsgrad=amsgrad, weight_decay=0.1)
        self.scheduler = get_cosine_schedule_with_warmup(self.optimizer, num_warmup_steps=2, num_training_steps=12)
        self.step = 0

    def train(self, steps: int) -> "Run":
        for _ in range(steps):
            tokens = torch.randint(random.randrange(1, 9), 96, (2, 8 + np.random.randint(4)))
            logits = self.model(tokens[:, :-1]).float()
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            self.step += 1
        return self

    def save(self, folder: Path, facts=None, **options) -> None:
        progress = {"global_step": self.step, "seed": 7}
        state = gather(self.model, self.optimizer, self.scheduler, progress, facts)
        self.checkpointer.save(folder, self.model, state=state, verify=True, **options)  # which must change nothing

    def resume(self, folder: Path) -> "Run":
        progress = restore(folder, self.model, self.optimizer, self.scheduler)
        self.step = progress["global_step"]
        assert progress == {"global_step": self.step, "seed": 7}
        return self

    def digest(self) -> list:
        """Everything that decides how the run continues."""
        state = [self.optimizer.state[param] for param in self.params]
        tensors = [*map(dequantize, self.model.parameters()), *(entry[key] for entry in state for key in sorted(entry))]
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        draws = [random.random(), np.random.rand(), torch.rand(1).item()]
        return [*((t.dtype, t.tolist()) for t in tensors), groups, self.scheduler.state_dict(), self.step, draws]


@pytest.mark.parametrize(
    ("options", "save"),
    [
        (LORA, {"adapter_only": True}),
        (LORA | {"use_dora": True}, {}),
        ({"lora_attn_modules": ["q_proj"], "quantize_base": True, "dtype": torch.bfloat16}, {"adapter_only": True}),
        (LORA | {"dtype": torch.bfloat16, "adapter_dtype": torch.float32}, {}),
        ({}, {}),
        ({"dtype": torch.bfloat16, "amsgrad": True}, {}),
    ],
    ids=["lora", "dora", "qlora bf16", "lora fp32 over bf16", "full", "full bf16"],
)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(hf_base, build, tmp_path: Path, options: dict, save: dict):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    run = Run(hf_base, build, **options).train(3)
    run.save(tmp_path / "step_3", **save)
    expected = run.train(3).digest()
    assert Run(hf_base, build, **options).train(1).resume(tmp_path / "step_3").train(3).digest() == expected


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_each_weight_is_read_from_one_place(hf_base, build, tmp_path: Path, monkeypatch, options: dict):
    """A full model loads from the checkpoint, an adapter's base from the base; nothing is read before the checks."""
    run = Run(hf_base, build, **options).train(3)
    run.save(tmp_path / "step_3")
    expected, read = run.train(1).digest(), Counter()
    read_value = safetensors_stream._read
    monkeypatch.setattr(
        safetensors_stream, "_read", lambda path, name: (read.update([path.parent]), read_value(path, name))[1]
    )
    checkpointer = FullModelHFCheckpointer(hf_base.dir, adapter_checkpoint=tmp_path / "gone")
    resumed = Run(hf_base, partial(build, resume_from=tmp_path / "step_3"), checkpointer=checkpointer, **options)
    before_restore = read.copy()
    resumed.resume(tmp_path / "step_3")
    adapter, state = tmp_path / "step_3" / "adapter", tmp_path / "step_3" / "resume"
    if options:
        assert before_restore == {hf_base.dir: 21} and read - before_restore == {adapter: 8, state: 24}
    else:
        assert not before_restore and read == {tmp_path / "step_3": 21, state: 63}
    assert resumed.train(1).digest() == expected


def test_a_full_model_of_another_shape_is_refused_before_a_weight_is_read(hf_base, build, tmp_path, monkeypatch):
    Run(hf_base, build).train(1).save(tmp_path / "step_1")
    model = build(FullModelHFCheckpointer(hf_base.dir), resume_from=tmp_path / "step_1", dtype=torch.bfloat16)
    monkeypatch.setattr(safetensors_stream, "_read", lambda path, name: pytest.fail(f"{name} is read"))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="was float32 .*is bfloat16"):
        restore(tmp_path / "step_1", model, optimizer, None)
    with torch.device("meta"):
        wider = llama2.llama2(**{**FullModelHFCheckpointer(hf_base.dir).decoder_args, "intermediate_dim": 512})
    with pytest.raises(CheckpointError, match="intermediate_dim 256, the model has 512"):
        FullModelHFCheckpointer(hf_base.dir).load(wider, device="cpu", dtype=torch.float32, resume_from=tmp_path)
    assert all(param.is_meta for param in wider.parameters())


def test_every_part_of_the_state_counts(hf_base, build, tmp_path: Path):
    """Negative control: with any one part left out, the digest differs."""
    run = Run(hf_base, build, **LORA).train(3)
    run.save(tmp_path / "step_3")
    expected = run.train(2).digest()

    def resumed(spoil) -> list:
        fresh = Run(hf_base, build, **LORA).resume(tmp_path / "step_3")
        spoil(fresh)
        return fresh.train(2).digest()

    assert resumed(lambda run: None) == expected
    assert resumed(lambda run: run.optimizer.state.clear()) != expected
    assert resumed(lambda run: torch.rand(1)) != expected
    assert resumed(lambda run: random.random()) != expected
    assert resumed(lambda run: np.random.rand()) != expected
    assert resumed(lambda run: run.scheduler.step()) != expected
    assert resumed(lambda run: run.params[0].data.add_(1e-6)) != expected


@pytest.mark.parametrize("change", ["shape", "dtype", "gone", "another's"])
def test_moments_that_are_not_those_that_were_saved_are_refused(hf_base, build, tmp_path: Path, change: str):
    """`Optimizer.load_state_dict` would take all of these; without a manifest only the file itself can tell."""
    Run(hf_base, build, **LORA).train(1).save(tmp_path / "step_1")
    path = tmp_path / "step_1" / "resume" / "optimizer.safetensors"
    moments = load_file(path)
    name = next(name for name in moments if name.endswith("lora_a.weight/exp_avg"))
    if change == "shape":
        moments[name] = moments[name][:1].clone()
    elif change == "dtype":
        moments[name] = moments[name].bfloat16()
    else:
        moment = moments.pop(name)
        if change == "another's":
            moments["layers.7.attn.q_proj.lora_a.weight/exp_avg"] = moment
    save_file(moments, path)
    resumed = Run(hf_base, build, **LORA)
    before = [param.clone() for param in resumed.params]
    with pytest.raises(CheckpointError, match=f"optimizer.safetensors: is not what was saved: {name}.* differ"):
        resumed.resume(tmp_path / "step_1")
    assert all(torch.equal(a, b) for a, b in zip(before, resumed.params, strict=True))


def test_a_run_of_another_model_is_refused_and_nothing_changed(hf_base, build, tmp_path: Path):
    Run(hf_base, build, **LORA).train(1).save(tmp_path / "step_1")
    other = Run(hf_base, build, lora_attn_modules=["q_proj", "k_proj"], lora_rank=4)
    other.optimizer = torch.optim.SGD(other.params)
    before = [param.clone() for param in other.model.parameters()]
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path / "step_1", other.model, other.optimizer, None)
    message = str(error.value)
    assert "layers.0.attn.q_proj.lora_a.weight was float32 [8, 128], is float32 [4, 128]" in message
    assert (
        "and 9 more; the optimizer was AdamW, is SGD; the lr_scheduler was LambdaLR, is None" in message
        and "\n" not in message
    )
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.parameters(), strict=True))


def test_another_dtype_is_not_the_same_run(hf_base, build, tmp_path: Path):
    Run(hf_base, build).train(1).save(tmp_path / "step_1")
    with pytest.raises(CheckpointError, match="was float32 .*is bfloat16"):
        Run(hf_base, build, dtype=torch.bfloat16).resume(tmp_path / "step_1")
    mixed = LORA | {"dtype": torch.bfloat16, "adapter_dtype": torch.float32}
    Run(hf_base, build, **mixed).train(1).save(tmp_path / "step_2")
    with pytest.raises(CheckpointError, match="lora_a.weight was float32 .*is bfloat16"):
        Run(hf_base, build, **mixed | {"adapter_dtype": None}).resume(tmp_path / "step_2")


def test_options_are_those_of_the_new_config_and_the_rate_that_of_the_step(hf_base, build, tmp_path: Path):
    run = Run(hf_base, build, lr=1e-2, **LORA).train(5)
    run.save(tmp_path / "step_5")
    rate = run.optimizer.param_groups[0]["lr"]
    resumed = Run(hf_base, build, lr=1e-3, **LORA)
    resumed.optimizer.param_groups[0]["weight_decay"] = 0.3
    resumed.resume(tmp_path / "step_5")
    [group] = resumed.optimizer.param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (1e-3, 0.3)
    assert group["lr"] == pytest.approx(rate / 10) and resumed.scheduler.get_last_lr() == [group["lr"]]


def test_a_longer_schedule_goes_on_at_its_own_rate(hf_base, build, tmp_path: Path):
    Run(hf_base, build, **LORA).train(12).save(tmp_path / "step_12")  # at its end, where the rate is 0
    longer, unbroken = Run(hf_base, build, **LORA), Run(hf_base, build, **LORA)
    for run in (longer, unbroken):
        run.scheduler = get_cosine_schedule_with_warmup(run.optimizer, num_warmup_steps=2, num_training_steps=24)
    longer.resume(tmp_path / "step_12")
    for _ in range(12):
        unbroken.optimizer.step()
        unbroken.scheduler.step()
    assert longer.scheduler.get_last_lr() == unbroken.scheduler.get_last_lr() != [0]
    assert longer.optimizer.param_groups[0]["lr"] == unbroken.optimizer.param_groups[0]["lr"]


def facts(epochs: int, lr_scheduler: dict | None) -> dict:
    """The progress of runs of 3 steps an epoch."""
    return run_facts(changed(epochs=epochs, lr_scheduler=lr_scheduler), "29 samples", 3)


@pytest.mark.parametrize("epochs", [2, 4, 8])
@pytest.mark.parametrize("kind", ["cosine", "one cycle", None])
def test_a_schedule_that_another_number_of_steps_changes_is_announced(
    hf_base, build, tmp_path: Path, caplog, epochs: int, kind: str | None
):
    """The run had 4 epochs, and was saved after step 5; a constant rate does not depend on the number of steps."""
    scheduler = {"_component_": kind} if kind else None

    def make(epochs: int) -> Run:
        run = Run(hf_base, build, **LORA)
        if kind == "one cycle":
            run.scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=1e-2, total_steps=3 * epochs)
        else:
            run.scheduler = get_cosine_schedule_with_warmup(run.optimizer, 2, 3 * epochs)
        return run

    run = make(4).train(5)
    run.save(tmp_path / "step_5", facts=facts(4, scheduler))
    resumed = make(epochs)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="torchtune_lite"):
        restore(tmp_path / "step_5", resumed.model, resumed.optimizer, resumed.scheduler, facts(epochs, scheduler))
    if kind is None or epochs == 4:
        assert not caplog.messages
        return
    [message] = caplog.messages
    told = f"the run had 12 steps and now has {3 * epochs} (epochs, max_steps_per_epoch), "
    rate, before = (each.scheduler.get_last_lr()[0] for each in (resumed, run))
    if kind == "cosine":
        assert rate != before
        told += f"which changes its schedule: at step 6 the learning rate is {rate:g} instead of {before:g}"
    else:
        assert rate == before
        told += "but its learning rate follows the schedule that was saved"
    assert message == told


def test_a_checkpoint_of_a_version_that_noted_no_steps_is_resumed_without_a_word(hf_base, build, tmp_path, caplog):
    run = Run(hf_base, build, **LORA).train(1)
    old = facts(4, {"_component_": "cosine"})
    del old["total_steps"], old["patience"]
    run.save(tmp_path / "step_1", facts=old)
    now = facts(8, {"_component_": "cosine"})
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="torchtune_lite"):
        check_resumable(tmp_path / "step_1", now)
        restore(tmp_path / "step_1", run.model, run.optimizer, run.scheduler, now)
    assert not caplog.messages


def test_another_kind_of_schedule_gives_back_the_options_it_had_set(hf_base, build, tmp_path: Path):
    def make() -> Run:
        run = Run(hf_base, build, **LORA)
        run.scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=1e-2, total_steps=12)
        return run

    run = make().train(3)
    run.save(tmp_path / "step_3")
    expected = run.train(3).digest()
    assert make().resume(tmp_path / "step_3").train(3).digest() == expected


CONFIG = {
    "seed": None,
    "batch_size": 2,
    "epochs": 2,
    "model": {"_component_": "lora_llama2", "lora_rank": 8, "lora_dropout": 0.0, "lora_attn_modules": ["q_proj"]},
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-2, "betas": [0.9, 0.99]},
    "lr_scheduler": None,
    "checkpointer": {"checkpoint_dir": "base", "merge_into": "quantized"},
    "dataset": {"source": "a.jsonl"},
    "metric_logger": {"api_key": "hidden"},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 4, of 3 steps an epoch, of a run with `CONFIG` that drew the seed 7."""
    folder = tmp_path / "step_4"
    (folder / "resume").mkdir(parents=True)
    trainer = {"progress": {"global_step": 4, "seed": 7}, "facts": run_facts(CONFIG, "29 samples", 3)}
    (folder / "resume" / "trainer.json").write_text(json.dumps(trainer))
    return folder


def changed(**values) -> dict:
    """`CONFIG` with other values; `key__name` is under the key."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in values.items():
        key, _, under = name.partition("__")
        if under:
            config[key][under] = value
        else:
            config[key] = value
    return config


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epochs": 5},
        {"seed": 7},
        {"checkpointer__merge_into": "original"},
        {"dataset": {"source": "moved/a.jsonl"}},
        {"metric_logger": None},
        {"key_of_ones_own": 3},
        {"group_by_length": False},  # which the recipe of the saved run did not have
    ],
    ids=str,
)
def test_what_may_change_is_not_even_mentioned(saved, caplog, values):
    with caplog.at_level(logging.WARNING):
        check_resumable(saved, run_facts(changed(**values), "29 samples", 3))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("values", "since_best", "line"),
    [
        ({"epochs": 1}, 0, "the run is finished, step 4 of 3 is done; to go on, set epochs: 2 or more"),
        ({"epochs": 2}, 0, None),
        ({"epochs": 2, "patience": 3}, 2, None),
        ({"epochs": 2, "patience": 3}, 3, "the run is finished, patience ran out at step 4; to go on, raise patience"),
    ],
)
def test_a_run_that_is_finished_is_told_how_to_go_on(saved, caplog, values, since_best, line):
    trainer = json.loads((saved / "resume" / "trainer.json").read_text())
    trainer["progress"]["validations_since_best"] = since_best
    (saved / "resume" / "trainer.json").write_text(json.dumps(trainer))
    with caplog.at_level(logging.WARNING):
        check_resumable(saved, run_facts(changed(**values), "29 samples", 3))
    assert len(caplog.messages) == (line is not None) and all(line in message for message in caplog.messages)


def test_what_is_warned_of_is_one_line_with_old_and_new(saved, caplog):
    config = changed(optimizer__lr=3e-3, model__lora_dropout=0.1, lr_scheduler={"num_warmup_steps": 5})
    with caplog.at_level(logging.WARNING):
        check_resumable(saved, run_facts(config, "29 samples", 3))
    [message] = caplog.messages
    for change in (
        "optimizer.lr was 0.01, is 0.003",
        "model.lora_dropout was 0.0, is 0.1",
        "lr_scheduler.num_warmup_steps was None, is 5",
    ):
        assert change in message


@pytest.mark.parametrize(
    ("values", "dataset", "steps", "line"),
    [
        ({"model__lora_rank": 16}, "29 samples", 3, "model.lora_rank was 8, is 16"),
        ({"model__lora_attn_modules": ["k_proj"]}, "29 samples", 3, "lora_attn_modules was ['q_proj'], is ['k_proj']"),
        ({"model__use_dora": True}, "29 samples", 3, "model.use_dora was None, is True"),
        ({"batch_size": 4}, "29 samples", 3, "batch_size was 2, is 4"),
        ({"seed": 9}, "29 samples", 3, "seed was 7, is 9"),
        ({"optimizer___component_": "torch.optim.SGD"}, "29 samples", 3, "_component_ was torch.optim.AdamW, is "),
        ({}, "30 samples", 3, "dataset was 29 samples, is 30 samples"),
        ({}, "29 samples", 5, "max_steps_per_epoch: an epoch was 3 steps, is 5"),
    ],
)
def test_what_is_refused_is_one_line_with_old_and_new(saved, values, dataset, steps, line):
    with pytest.raises(CheckpointError) as caught:
        check_resumable(saved, run_facts(changed(**values), dataset, steps))
    assert line in str(caught.value) and "step_4 cannot be resumed" in str(caught.value)
    assert "\n" not in str(caught.value)


def data(samples="29 samples", **rows):
    """A fingerprint of data sets, by the name and the hash of their rows."""
    return {"samples": samples, "rows": list(rows.items())}


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (data(a="1", b="2"), data(a="1", b="2"), []),
        (data(a="1"), data(moved="1"), []),
        (data(own=None), data(own=None), []),
        (data(own=None), data(own="1"), []),
        ("29 samples", data(a="1"), []),  # of an older version
        ("30 samples", data(a="1"), ["dataset was 30 samples, is 29 samples;"]),
        (data(a="1", b="2"), data(a="1", b="3"), ["rows of dataset b were changed (hash was 2, is 3)"]),
        (
            data("30 samples", a="1"),
            data(a="2"),
            ["dataset was 30 samples, is 29 samples;", "rows of dataset a were changed (hash was 1, is 2)"],
        ),
        (
            data("29 samples with hash 5", a="1"),
            data("29 samples with hash 6", a="1"),
            ["is 29 samples with hash 6, made of the same rows by another tokenizer, template or setting"],
        ),
        (data("30 samples", own=None), data(own=None), ["dataset was 30 samples, is 29 samples;"]),
    ],
)
def test_what_was_changed_in_the_data_is_said(saved, before, after, lines):
    trainer = json.loads((saved / "resume" / "trainer.json").read_text())
    trainer["facts"]["dataset"] = before
    (saved / "resume" / "trainer.json").write_text(json.dumps(trainer))
    if not lines:
        check_resumable(saved, run_facts(CONFIG, after, 3))
        return
    with pytest.raises(CheckpointError) as caught:
        check_resumable(saved, run_facts(CONFIG, after, 3))
    assert all(line in str(caught.value) for line in lines)
    assert ("rows of" in str(caught.value)) is any("rows of" in line for line in lines)


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_an_adapter_goes_on_over_the_same_base_only_wherever_that_lies(saved, tmp_path: Path, caplog, layout):
    name = {"hf": "model.safetensors", "meta": "consolidated.00.pth"}[layout]
    facts = {}
    for folder, content in (("base", b"0" * 9_000_000), ("moved", b"0" * 9_000_000), ("other", b"1" * 9_000_000)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
        facts[folder] = run_facts(changed(checkpointer__checkpoint_dir=str(tmp_path / folder)), "29 samples", 3)
    trainer = {"progress": {"global_step": 4, "seed": 7}, "facts": facts["base"]}
    (saved / "resume" / "trainer.json").write_text(json.dumps(trainer))
    check_resumable(saved, facts["moved"])
    check_resumable(saved, facts["other"])  # of a full model, the checkpoint has all weights itself
    [message] = caplog.messages
    assert "the weights in checkpointer.checkpoint_dir have changed" in message
    (saved / "adapter").mkdir()
    check_resumable(saved, facts["moved"])
    with pytest.raises(CheckpointError, match="the weights in checkpointer.checkpoint_dir have changed .hash was "):
        check_resumable(saved, facts["other"])


def test_all_refusals_are_told_at_once(saved):
    with pytest.raises(CheckpointError, match="seed was 7, is 9; batch_size was 2, is 4; dataset was"):
        check_resumable(saved, run_facts(changed(batch_size=4, seed=9), "30 samples", 3))


def test_the_steps_of_an_epoch_may_change_within_the_first(saved):
    check_resumable(saved, run_facts(CONFIG, "29 samples", 3))
    trainer = json.loads((saved / "resume" / "trainer.json").read_text())
    trainer["facts"]["steps_per_epoch"] = 4
    (saved / "resume" / "trainer.json").write_text(json.dumps(trainer))
    check_resumable(saved, run_facts(CONFIG, "29 samples", 10))


def test_a_checkpoint_without_facts_passes_and_facts_hold_no_other_key(saved):
    assert "hidden" not in (saved / "resume" / "trainer.json").read_text()
    (saved / "resume" / "trainer.json").write_text('{"progress": {"global_step": 1, "seed": 7}}')
    check_resumable(saved, run_facts(changed(batch_size=4), "1 sample", 1))


def test_a_run_that_goes_on_has_the_date_of_its_start(saved):
    assert start_date(None, "2025-01-31") == start_date(saved, "2025-01-31") == "2025-01-31"
    trainer = json.loads((saved / "resume/trainer.json").read_text())
    trainer["progress"]["start_date"] = "2024-02-29"
    (saved / "resume/trainer.json").write_text(json.dumps(trainer))
    assert start_date(saved, "2025-01-31") == "2024-02-29"


def test_a_newer_format_is_refused(hf_base, build, tmp_path: Path):
    run = Run(hf_base, build, **LORA).train(1)
    run.save(tmp_path / "step_1")
    path = tmp_path / "step_1" / "resume" / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(CheckpointError, match="format 2, this version reads 1"):
        run.resume(tmp_path / "step_1")
