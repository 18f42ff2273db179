"""Runs of the embedded model as training leaves them, made without training: config.yaml, checkpoints, adapters."""

from pathlib import Path
from typing import Any

import torch

from torchtune_lite import catalog, config, training
from torchtune_lite.peft import adapter_state

BASE = Path(catalog.__file__).parent / "assets" / "base"


def settings(*changes: str, config_name: str = "demo/address_qlora") -> Any:
    """The settings of a recipe, of a shipped config and overrides."""
    recipe = catalog.find_recipe(catalog.recipe_key(config_name)).path
    return config.load(config_name, ["device=cpu", "dtype=fp32", *changes], config.settings_of(recipe))


def make_run(output_dir: Path, *changes: str, names: tuple[str, ...] = ("epoch_0",), **how: Any) -> torch.nn.Module:
    """Writes the output_dir of a run, with the checkpoints `names`; gives the model, which no step has changed much.

    `changes` are overrides of demo/address_qlora, `how` are arguments of the checkpointer's `save`.
    """
    cfg = settings(f"output_dir={output_dir}", *changes)
    checkpointer, tokenizer, model = training.build_model(cfg)
    checkpointer.use_tokenizer(tokenizer, model.config.vocab_size)
    torch.manual_seed(0)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    for value in adapter_state(model).values():
        value.data += 0.02 * torch.randn_like(value)
    config.save(cfg, output_dir)
    for name in names:
        checkpointer.save(output_dir / name, model, **how)
    return model.eval()
