import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from torchtune_lite.checkpoint import FullModelHFCheckpointer, gather, restore
from torchtune_lite.errors import CheckpointError
from torchtune_lite.optim.schedules import get_cosine_schedule_with_warmup
from torchtune_lite.peft import dequantize

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}


class Run:
    """A training loop in small: dropout, clipping and data drawn from the global generators."""

    def __init__(self, hf_base, build, *, amsgrad=False, lr=1e-2, **options) -> None:
        self.checkpointer = FullModelHFCheckpointer(hf_base.dir)
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

    def save(self, folder: Path, **options) -> None:
        state = gather(self.model, self.optimizer, self.scheduler, {"global_step": self.step, "seed": 7})
        rows = torch.arange(16).view(2, 8)  # the comparison on them must change nothing
        self.checkpointer.save(folder, self.model, state=state, rows=rows, **options)

    def resume(self, folder: Path) -> "Run":
        progress = restore(folder, self.model, self.optimizer, self.scheduler)
        self.step = progress["global_step"]
        assert progress == {"global_step": self.step, "seed": 7}
        return self

    def digest(self) -> list:
        """Everything that decides how the run goes on."""
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


def test_an_optimizer_option_that_resuming_overrides_is_said(hf_base, build, tmp_path: Path, caplog):
    Run(hf_base, build, **LORA).train(1).save(tmp_path / "step_1")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Run(hf_base, build, **LORA).resume(tmp_path / "step_1")
        assert not caplog.messages
        Run(hf_base, build, lr=3e-3, **LORA).resume(tmp_path / "step_1")
    assert caplog.messages == ["resuming with optimizer.initial_lr 0.01 as saved, not 0.003"]


def test_a_newer_format_is_refused(hf_base, build, tmp_path: Path):
    run = Run(hf_base, build, **LORA).train(1)
    run.save(tmp_path / "step_1")
    path = tmp_path / "step_1" / "resume" / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(CheckpointError, match="format 2, this version reads 1"):
        run.resume(tmp_path / "step_1")
