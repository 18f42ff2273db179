"""Going on from a checkpoint: whether the run fits it, and putting the run back to it."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from torchtune_lite.checkpoint.formats.adapter import adapter_folder, load_adapter
from torchtune_lite.checkpoint.formats.files import hf_weight_files, listed_files, read_json, sampled_sha256
from torchtune_lite.checkpoint.formats.hf import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.checkpoint.state.optimizer_state import restore_moments, restore_options
from torchtune_lite.checkpoint.state.rng import set_own_rng_state
from torchtune_lite.checkpoint.state.run_state import (
    FORMAT,
    OPTIMIZER,
    RNG,
    TRAINER,
    class_name,
    dtypes_and_shapes,
    restore_adapters,
    trained_parameters,
)
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import FAMILIES, find_family
from torchtune_lite.peft import adapter_modules
from torchtune_lite.utils import counted

REFUSE, WARN = "refuse", "warn"
ACCUMULATION = "gradient_accumulation_steps"

ON_CHANGE = {
    "adapter_dtype": REFUSE,
    "batch_size": REFUSE,
    "clip_grad_norm": WARN,
    "collate": WARN,
    "compile": WARN,
    "dataset_val": WARN,
    "dataset_weights": REFUSE,
    "device": WARN,
    "dtype": REFUSE,
    ACCUMULATION: REFUSE,
    "group_by_length": REFUSE,
    "loss": WARN,
    "lr_scheduler": WARN,
    "mixed_precision": REFUSE,
    "model": REFUSE,
    "model.fused_lora": WARN,
    "model.mlp_tile": WARN,
    "model.lora_dropout": WARN,
    "optimizer": WARN,
    "optimizer._component_": REFUSE,
    "optimizer_in_bwd": WARN,
    "seed": REFUSE,
    "shuffle": REFUSE,
}
"""The effect of a changed key on resuming, which includes the keys under it. Any other key may change.

Some keys are judged otherwise: `dataset` and `tokenizer` by the rows and the samples they make,
`checkpointer.checkpoint_dir`, by the weights in it, of which an adapter needs the same ones again, and
`max_steps_per_epoch`, which may change as long as the run is in its first epoch: later, the steps done would stand for
other rows.
"""

log = logging.getLogger("torchtune_lite")


def run_facts(
    config: Mapping[str, Any], dataset: Mapping[str, Any] | str, steps_per_epoch: int, processes: int = 1
) -> dict[str, Any]:
    """Say what a run that goes on is compared with: of `config` what `ON_CHANGE` judges, the data, when it ends.

    `gradient_accumulation_steps` then counts the micro-batches of a step in all `processes`, however they share them.
    """
    if processes > 1:
        config = {**config, ACCUMULATION: config[ACCUMULATION] * processes}
    return {
        "config": {key: value for key, value in _flat(config).items() if _on_change(key)},
        "base": _base_fingerprint(config),
        "dataset": dataset,
        "steps_per_epoch": steps_per_epoch,
        "total_steps": steps_per_epoch * config.get("epochs", 1),
        "patience": config.get("patience"),
    }


def _base_fingerprint(config: Mapping[str, Any]) -> str | None:
    """Hash samples of the base model's weights; None where a checkpointer of the user's own keeps them elsewhere."""
    try:
        checkpointer = config["checkpointer"]
        folder, names = Path(checkpointer["checkpoint_dir"]), checkpointer.get("checkpoint_files")
        meta = sorted(folder.glob("consolidated.*.pth"))
        files = listed_files(folder, names) if names else meta or hf_weight_files(folder)
        if checkpointer.get("merge_adapter"):
            files += sorted(adapter_folder(checkpointer["adapter_checkpoint"]).glob("adapter_model.*"))
        return hashlib.sha256("".join(map(sampled_sha256, files)).encode()).hexdigest()[:12]
    except (KeyError, CheckpointError):
        return None


def check_resumable(folder: Path | str | None, facts: Mapping[str, Any]) -> None:
    """Compare the `run_facts` of the run that is to go on with those saved in `folder`, before a weight is read.

    By `ON_CHANGE`, what changed is a CheckpointError or one warning. A `seed` of None stands for the saved one. A
    checkpoint that was saved without facts passes, and so does None, a new run.
    """
    if folder is None:
        return
    trainer = read_json(Path(folder) / "resume" / TRAINER)
    if not (saved := trainer.get("facts")):
        return
    progress = trainer["progress"]
    old, new = saved["config"] | {"seed": progress["seed"]}, dict(facts["config"])
    if new.get("seed") is None:
        new["seed"] = old["seed"]
    known = [key for key in {**old, **new} if key in old or "." in key]  # not those of recipes that came later
    changed = {key: _on_change(key) for key in known if old.get(key) != new.get(key)}
    what = {ACCUMULATION: f"{ACCUMULATION} of all processes"}
    lines = {key: f"{what.get(key, key)} was {old.get(key)}, is {new.get(key)}" for key in changed}
    refused = [lines[key] for key, effect in changed.items() if effect == REFUSE]
    refused += _data_changes(saved["dataset"], facts["dataset"])
    steps = saved["steps_per_epoch"], facts["steps_per_epoch"]
    if steps[0] != steps[1] and progress["global_step"] > min(steps):
        refused.append(f"max_steps_per_epoch: an epoch was {counted(steps[0], 'step')}, is {steps[1]}")
    warned = [lines[key] for key, effect in changed.items() if effect == WARN]
    bases = saved.get("base"), facts["base"]
    if None not in bases and bases[0] != bases[1]:
        line = f"the weights in checkpointer.checkpoint_dir have changed (hash was {bases[0]}, is {bases[1]})"
        (refused if (Path(folder) / "adapter").is_dir() else warned).append(line)
    if refused:
        raise CheckpointError(
            f"{folder} cannot be resumed with this config: {'; '.join(refused)}; "
            "restore the old values, or start a new run in another output_dir"
        )
    if warned:
        log.warning("resuming, but not as an unbroken run would go on: %s", "; ".join(warned))
    _tell_of_the_end(progress, facts)


def _tell_of_the_end(progress: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Say that a run is finished, and which key makes it longer."""
    step, total, patience = progress["global_step"], facts["total_steps"], facts["patience"]
    if step >= total:
        epochs = step // facts["steps_per_epoch"] + 1
        log.warning("the run is finished, step %d of %d is done; to go on, set epochs: %d or more", step, total, epochs)
    elif patience is not None and progress.get("validations_since_best", 0) >= patience:
        log.warning("the run is finished, patience ran out at step %d; to go on, raise patience", step)


def _flat(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat


def _on_change(key: str) -> str | None:
    """Look up a dotted key in `ON_CHANGE`, or else the nearest key above it."""
    while key not in ON_CHANGE and key:
        key = key.rpartition(".")[0]
    return ON_CHANGE.get(key)


def start_date(folder: Path | str | None, today: str) -> str:
    """Return the day on which the run saved in `folder` began; `today` where there is none, or none is noted."""
    progress = {} if folder is None else read_json(Path(folder) / "resume" / TRAINER)["progress"]
    return progress.get("start_date", today)


def _data_changes(saved: Mapping[str, Any] | str, ours: Mapping[str, Any] | str) -> list[str]:
    """Say in what the data's fingerprints differ; an older version saved no more than the line of the samples."""
    old, new = ({"samples": each, "rows": []} if isinstance(each, str) else each for each in (saved, ours))
    pairs = [(name, before, now) for (_, before), (name, now) in zip(old["rows"], new["rows"], strict=False)]
    changes = [
        f"rows of dataset {name} were changed (hash was {before}, is {now})"
        for name, before, now in pairs
        if None not in (before, now) and before != now
    ]
    if old["samples"] != new["samples"]:
        same = pairs and not changes and all(now is not None for _, _, now in pairs)
        why = ", made of the same rows by another tokenizer, template or setting" if same else ""
        changes.insert(0, f"dataset was {old['samples']}, is {new['samples']}{why}")
    return changes


def restore(
    folder: Path | str,
    model: nn.Module,
    optimizer: Optimizer,
    lr_scheduler: LRScheduler | None,
    facts: Mapping[str, Any] | None = None,
    *,
    rank: int = 0,
    size: int = 1,
) -> dict[str, Any]:
    """Put a run back to where it was saved in `folder` and returns its progress.

    `model` has been given to `Checkpointer.load`, optimizer and schedule are new. All is checked before anything is
    changed: CheckpointError lists what differs. The random states are set last; draw nothing between this call and the
    first batch. With a schedule of `torchtune_lite.optim`, a function of the step alone, the optimizer's options and
    the schedule are those of the new config; with any other, which may have changed any option, they are the saved
    ones. `facts` are `run_facts`: a warning tells where another number of steps changes the schedule. Of `size`
    processes, this is the one of number `rank`, which has a random state of its own.
    """
    folder = Path(folder)
    trainer = read_json(folder / "resume" / TRAINER)
    if trainer.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: resume state has format {trainer.get('format')}, this version reads {FORMAT}")
    family = find_family(trainer["family"])
    if family is None:
        raise CheckpointError(f"{folder} is of a {trainer['family']} model; known are {', '.join(FAMILIES)}")
    tensors = read_safetensors(folder / "resume" / OPTIMIZER)
    rng = read_json(folder / "resume" / RNG)
    found = dtypes_and_shapes(tensors)
    saved = trainer["optimizer"].get("tensors", found)  # an older version did not note them
    if wrong := [name for name in {**saved, **found} if saved.get(name) != found.get(name)]:
        raise CheckpointError(f"{folder / 'resume' / OPTIMIZER}: is not what was saved: {listed(wrong)} differ")
    _check(folder, trainer, model, optimizer, lr_scheduler)

    if adapter_modules(model):
        if any(set(each.adapter_params()) - each.training_state().keys() for each in adapter_modules(model).values()):
            load_adapter(model, folder / "adapter", HFLayout(family, model.config))
        restore_adapters(model, folder / "resume")
    else:
        weight = model.tok_embeddings.weight
        FullModelHFCheckpointer(folder).load(model, device=weight.device, dtype=weight.dtype)
    restore_options(optimizer, lr_scheduler, trainer)
    restore_moments(optimizer, dict(model.named_parameters()), tensors, trainer["optimizer"])
    if facts is not None and lr_scheduler is not None:
        _tell_of_another_schedule(trainer, facts, lr_scheduler)
    progress = trainer["progress"]
    set_own_rng_state(rng, rank, size, f"{progress['seed']}/{progress['global_step']}")
    log.info("resuming from %s with seed %s after step %d", folder, progress["seed"], progress["global_step"])
    return progress


def _tell_of_another_schedule(trainer: dict[str, Any], facts: Mapping[str, Any], lr_scheduler: LRScheduler) -> None:
    """Warn where the run has another number of steps than it had, if its learning rate follows a schedule."""
    before, now = (trainer.get("facts") or {}).get("total_steps"), facts["total_steps"]
    if before in (None, now) or facts["config"].get("lr_scheduler", "") is None:
        return
    changed = f"the run had {counted(before, 'step')} and now has {now} (epochs, max_steps_per_epoch)"
    if not isinstance(lr_scheduler, LambdaLR):
        log.warning("%s, but its learning rate follows the schedule that was saved", changed)
        return
    [rate, *_], [saved_rate, *_] = lr_scheduler.get_last_lr(), trainer["lr_scheduler"]["state"]["_last_lr"]
    step = trainer["progress"]["global_step"] + 1
    log.warning(
        "%s, which changes its schedule: at step %d the learning rate is %g instead of %g",
        changed,
        step,
        rate,
        saved_rate,
    )


def _check(
    folder: Path, trainer: dict[str, Any], model: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler | None
) -> None:
    saved, ours = trainer["trained"], trained_parameters(model)
    problems = [
        f"{name} was {_parameter(saved.get(name))}, is {_parameter(ours.get(name))}"
        for name in {**saved, **ours}
        if saved.get(name) != ours.get(name)
    ]
    problems = [listed(problems)] if problems else []
    if (kind := trainer["optimizer"]["class"]) != class_name(optimizer):
        problems.append(f"the optimizer was {kind}, is {class_name(optimizer)}")
    names = {param: name for name, param in model.named_parameters()}
    groups = [[names[param] for param in group["params"]] for group in optimizer.param_groups]
    if not problems and groups != [group["params"] for group in trainer["optimizer"]["groups"]]:
        problems.append("the optimizer's parameter groups have changed")
    if (kind := trainer["lr_scheduler"]["class"]) != class_name(lr_scheduler):
        problems.append(f"the lr_scheduler was {kind}, is {class_name(lr_scheduler)}")
    if problems:
        raise CheckpointError(f"{folder} cannot be resumed with this config: {'; '.join(problems)}")


def _parameter(entry: list | None) -> str:
    return f"{entry[0]} {entry[1]}" if entry else "not trained"
