"""Training on another device than the CPU: the number of waits of the host, and the devices of tensors.

The recipes run as they are, on the meta device in place of a GPU; `test_gpu.py` asks torch the same on a GPU.
"""

import sys
from pathlib import Path

import pytest

from tests.recipes.conftest import common_keys
from tests.waits import meta_gpu, waits  # noqa: F401, fixtures
from torchtune_lite.config.entry_point import load, settings_of
from torchtune_lite.kernels import varlen_attention
from torchtune_lite.modules import attention

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = 2
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
log_every_n_steps: 1
"""


def recipe_of(tiny, folder, method, *changes):
    """Return the recipe of a run without saves, as a save reads all trained weights."""
    path = folder / "walk.yaml"
    path.write_text(common_keys(tiny, folder / "out") + REST + (FULL if method == "full" else LORA))
    cls = settings_of(RECIPES / f"{method}_finetune_single_device.py")
    [recipe_class] = [each for name, each in vars(sys.modules[cls.__module__]).items() if "FinetuneRecipe" in name]
    recipe = recipe_class(load(path, [*changes], cls))
    recipe.run.save = lambda name, final=False: None
    return recipe


@pytest.fixture
def walk(tiny, tmp_path, meta_gpu, waits):  # noqa: F811
    """Take the steps of a run; return the calls that made the host wait."""

    def run(method: str, *changes: str) -> list[str]:
        recipe = recipe_of(tiny, tmp_path, method, *changes)
        recipe.setup()
        with waits:
            recipe.train()
        assert recipe.run.progress.global_step == STEPS
        recipe.run.records.close({})
        return waits.seen

    return run


CHECKPOINTING = "enable_activation_checkpointing=True"
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
    (
        "lora",
        "lr_scheduler={_component_: torchtune_lite.training.get_cosine_schedule_with_warmup, num_warmup_steps: 1}",
    ),
    ("full",),
    ("full", "dtype=bf16", "collate=padded", CHECKPOINTING, "gradient_accumulation_steps=2", "clip_grad_norm=1.0"),
    ("full", "optimizer={_component_: torchtune_lite.optim.MasterAdamW, lr: 1.0e-3}", "dtype=bf16"),
    ("full", "optimizer={_component_: torchtune_lite.optim.StochasticAdamW, lr: 1.0e-3}", "dtype=bf16"),
]


@pytest.mark.parametrize("run", STEP, ids=" ".join)
def test_the_host_waits_once_a_step(walk, run):
    assert walk(*run) == ["a copy from meta to cpu"] * STEPS


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernel_for_documents_makes_nobody_wait(walk, monkeypatch, dtype, packed):
    """With torch's own `varlen_attn`, which knows the meta device, and one document after the other in float32."""
    monkeypatch.setattr(varlen_attention, "runs_flash", lambda device: True)
    monkeypatch.setattr(varlen_attention, "_kernels", {})
    calls = []
    load, packed_attention = varlen_attention._load, attention.packed_attention

    def counted():
        kernel = load()
        return kernel._replace(attend=lambda *args, **how: calls.append("varlen") or kernel.attend(*args, **how))

    monkeypatch.setattr(varlen_attention, "_load", counted)
    monkeypatch.setattr(attention, "packed_attention", lambda *args: calls.append("each") or packed_attention(*args))
    run = ["lora", f"dtype={dtype}", "adapter_dtype=fp32", CHECKPOINTING]
    run += ["dataset.packed=True", "tokenizer.max_seq_len=64"] if packed else []
    assert walk(*run) == ["a copy from meta to cpu"] * STEPS
    assert set(calls) == {"each" if dtype == "fp32" else "varlen"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_steps_in_the_backward_pass_have_to_know_the_loss_before(walk, method):
    seen = walk(method, "optimizer_in_bwd=True", "gradient_accumulation_steps=2", "clip_grad_norm=1.0")
    assert seen == ["aten._local_scalar_dense", "a copy from meta to cpu"] * STEPS


@pytest.mark.parametrize("optimizer", ["PagedAdamW", "CPUOffloadAdamW"])
def test_an_optimizer_in_host_memory_waits_for_its_copies(walk, optimizer):
    seen = walk("full", f"optimizer={{_component_: torchtune_lite.optim.{optimizer}, lr: 1.0e-3}}", "dtype=bf16")
    after_the_first = seen[seen.index("copies of the optimizer") + 1 :]  # which makes a copy of each weight
    assert after_the_first == ["a copy from meta to cpu", "copies of the optimizer"] * (STEPS - 1)


def test_of_several_data_sets_the_losses_are_read_where_they_are_logged(walk, tiny):
    part = f"{{_component_: torchtune_lite.datasets.instruct_dataset, source: {tiny.train}, name: %s}}"
    seen = walk("lora", f"dataset=[{part % 'a'}, {part % 'b'}]", "batch_size=8")
    assert len(seen) == 2 * STEPS
