"""Modules that a run must not import."""

import os
import subprocess
import sys

from tests.recipes.conftest import common_keys

RUN = """
import runpy, sys
sys.argv = ["tune", *sys.argv[1:]]
try:
    runpy.run_module("torchtune_lite", run_name="__main__", alter_sys=True)
finally:
    unneeded = ["sympy", "torch._inductor", "torchao", "wandb", "transformers", "pyarrow"]
    print("imported:", [name for name in unneeded if name in sys.modules])
"""


def test_a_lora_run_imports_nothing_that_it_does_not_use(tiny, tmp_path):
    config = tmp_path / "lora.yaml"
    model = "{_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj]}"
    optimizer = "{_component_: torch.optim.AdamW, lr: 1.0e-2}"
    keys = f"model: {model}\noptimizer: {optimizer}\nenable_activation_checkpointing: True\nmax_steps_per_epoch: 1\n"
    config.write_text(common_keys(tiny, tmp_path / "out") + keys)
    words = ["run", "lora_finetune_single_device", "--config", str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, *words], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
