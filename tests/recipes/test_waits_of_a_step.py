"""Training on a device that is not the CPU: how often a step makes the host wait, and on what device tensors are made.

The recipes run as they are, on the meta device in place of a GPU.
"""

import sys
from pathlib import Path

import pytest
import torch

from tests.recipes.conftest import common_keys
from tests.waits import meta_gpu, waits  # noqa: F401, fixtures
from torchtune_lite.config.parse import load, settings_of

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = 3
attention = sys.modules["torchtune_lite.modules.attention"]
LORA = """
model:
  _component_: torchtune_lite.models.llama2.lora_llama2
  lora_attn_modules: [q_proj, v_proj]
  apply_lora_to_mlp: True
  lora_rank: 4
"""
FULL = "model: {_component_: torchtune_lite.models.llama2.llama2}"
REST = f"""
optimizer: {{_component_: torch.optim.AdamW, lr: 1.0e-3}}
batch_size: 2
max_steps_per_epoch: {STEPS}
log_every_n_steps: 2
"""


@pytest.fixture
def walk(tiny, tmp_path, meta_gpu, waits):  # noqa: F811
    """Takes the steps of a run; returns what the host waited for."""

    def run(method: str, *changes: str) -> list[str]:
        path = tmp_path / "walk.yaml"
        path.write_text(common_keys(tiny, tmp_path / "out") + REST + (FULL if method == "full" else LORA))
        cls = settings_of(RECIPES / f"{method}_finetune_single_device.py")
        [recipe_class] = [each for name, each in vars(sys.modules[cls.__module__]).items() if "FinetuneRecipe" in name]
        recipe = recipe_class(load(path, [*changes], cls))
        recipe.save_checkpoint = lambda name, final=False: None  # saving reads all that is trained
        recipe.setup()
        with waits:
            recipe.train_epochs()
        assert recipe.progress.global_step == STEPS
        recipe.cleanup()
        return waits.seen

    return run


CHECKPOINTING = "enable_activation_checkpointing=True"
TWO = "dataset=[{_component_: torchtune_lite.datasets.instruct_dataset, source: ${x_a}}, "
STEP = [
    ("lora",),
    ("lora", "gradient_accumulation_steps=4"),
    ("lora", "collate=padded"),
    ("lora", "collate=padded", "group_by_length=True", "dtype=bf16"),
    ("lora", "dataset.packed=True", "tokenizer.max_seq_len=64"),
    ("lora", CHECKPOINTING, "clip_grad_norm=1.0"),
    ("lora", CHECKPOINTING, "model.mlp_tile=16", "dtype=bf16"),
    ("lora", "memory_budget=auto"),
    ("lora", "memory_budget=0.01"),
    ("lora", "model.fused_lora=False", "model.lora_dropout=0.1", "ac_mode=selective", "ac_option=2"),
    ("lora", "dtype=fp16", "adapter_dtype=fp32", "clip_grad_norm=1.0", "gradient_accumulation_steps=2"),
    ("lora", "model.apply_lora_to_output=True", "adapter_dtype=fp32", "dtype=bf16"),
    ("lora", "model.quantize_base=True", "dtype=bf16"),
    ("lora", "model.quantize_base=True", CHECKPOINTING, "model.mlp_tile=16", "gradient_accumulation_steps=2"),
    ("lora", "model.use_dora=True"),
    ("lora", "model.use_dora=True", "model.quantize_base=True", "dtype=bf16", CHECKPOINTING),
    ("lora", "optimizer={_component_: torch.optim.SGD, lr: 1.0e-3, momentum: 0.9}"),
    ("lora", "lr_scheduler={_component_: torchtune_lite.training.get_cosine_schedule_with_warmup, num_warmup_steps: 1}"),
    ("full",),
    ("full", "dtype=bf16", "collate=padded", CHECKPOINTING, "gradient_accumulation_steps=2", "clip_grad_norm=1.0"),
    ("full", "optimizer={_component_: torchtune_lite.optim.MasterAdamW, lr: 1.0e-3}", "dtype=bf16"),
    ("full", "optimizer={_component_: torchtune_lite.optim.StochasticAdamW, lr: 1.0e-3}", "dtype=bf16"),
]


@pytest.mark.parametrize("run", STEP, ids=" ".join)
def test_the_host_waits_once_a_step(walk, run):
    assert walk(*run) == ["a copy from meta to cpu"] * STEPS
