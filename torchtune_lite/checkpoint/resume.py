"""Going on from a checkpoint: whether the run fits it, and putting the run back to it."""

import logging
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchtune_lite.checkpoint.adapter import load_adapter
from torchtune_lite.checkpoint.files import read_json
from torchtune_lite.checkpoint.hf import FullModelHFCheckpointer
from torchtune_lite.checkpoint.model_weights import some
from torchtune_lite.checkpoint.rng import set_rng_state
from torchtune_lite.checkpoint.safetensors_stream import read_safetensors
from torchtune_lite.checkpoint.training_state import (
    FORMAT,
    OPTIMIZER,
    RNG,
    TRAINER,
    class_name,
    options_of,
    trained_parameters,
)
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import FAMILIES
from torchtune_lite.peft import adapter_modules

log = logging.getLogger("torchtune_lite")


def restore(
    folder: Path | str, model: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler | None
) -> dict[str, Any]:
    """Puts a run back to where it was saved in `folder` and returns its progress.

    `model` has its base loaded, optimizer and schedule are new. All is checked before anything is changed:
    CheckpointError lists what differs. The random states are set last; draw nothing between this call and the first
    batch.
    """
    folder = Path(folder)
    trainer = read_json(folder / "resume" / TRAINER)
    if trainer.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: resume state has format {trainer.get('format')}, this version reads {FORMAT}")
    if trainer["family"] not in FAMILIES:
        raise CheckpointError(f"{folder} is of a {trainer['family']} model; known are {', '.join(FAMILIES)}")
    tensors = read_safetensors(folder / "resume" / OPTIMIZER)
    rng = read_json(folder / "resume" / RNG)
    _check(folder, trainer, model, optimizer, lr_scheduler)

    family = FAMILIES[trainer["family"]]
    if adapter_modules(model):
        load_adapter(model, folder / "adapter", family)
    else:
        weight = model.tok_embeddings.weight
        FullModelHFCheckpointer(folder, model_type=family.name).load(model, device=weight.device, dtype=weight.dtype)
    _restore_optimizer(optimizer, dict(model.named_parameters()), trainer["optimizer"], tensors)
    if lr_scheduler is not None:
        lr_scheduler.load_state_dict(trainer["lr_scheduler"]["state"])
    set_rng_state(rng)
    return trainer["progress"]


def _check(
    folder: Path, trainer: dict[str, Any], model: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler | None
) -> None:
    saved, ours = trainer["trained"], trained_parameters(model)
    problems = [
        f"{name} was {_parameter(saved.get(name))}, is {_parameter(ours.get(name))}"
        for name in {**saved, **ours}
        if saved.get(name) != ours.get(name)
    ]
    problems = [some(problems)] if problems else []
    if (kind := trainer["optimizer"]["class"]) != class_name(optimizer):
        problems.append(f"the optimizer was {kind}, is {class_name(optimizer)}")
    names = {param: name for name, param in model.named_parameters()}
    groups = [[names[param] for param in group["params"]] for group in optimizer.param_groups]
    if not problems and groups != [group["params"] for group in trainer["optimizer"]["groups"]]:
        problems.append("the optimizer's parameter groups were others")
    if (kind := trainer["lr_scheduler"]["class"]) != class_name(lr_scheduler):
        problems.append(f"the lr_scheduler was {kind}, is {class_name(lr_scheduler)}")
    if problems:
        raise CheckpointError(f"{folder} cannot be resumed with this config: {'; '.join(problems)}")


def _parameter(entry: list | None) -> str:
    return f"{entry[0]} {entry[1]}" if entry else "not trained"


def _restore_optimizer(
    optimizer: Optimizer, params: dict[str, nn.Parameter], saved: dict[str, Any], tensors: dict[str, Weight]
) -> None:
    """Sets state and options directly; `Optimizer.load_state_dict` would cast moments to the parameters' dtype."""
    for group, old in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, new in options_of(group).items():
            if key in old and isinstance(new, tuple):
                old[key] = tuple(old[key])
            if key in old and key != "lr" and old[key] != new:
                log.warning("resuming with optimizer.%s %s as saved, not %s", key, old[key], new)
        group.update({key: value for key, value in old.items() if key != "params"})
    options = {param: group for group in optimizer.param_groups for param in group["params"]}
    optimizer.state.clear()
    for name, value in [*saved["values"].items(), *tensors.items()]:
        owner, _, key = name.rpartition("/")
        param = params[owner]
        if isinstance(value, Weight):
            counter = not value.shape and not (options[param].get("capturable") or options[param].get("fused"))
            value = value.read().to(device="cpu" if counter else param.device, copy=True)
        optimizer.state[param][key] = value
