"""Finds the recipes and configs that come with the package by listing their two folders."""

import re
from pathlib import Path
from typing import NamedTuple

from torchtune_lite.errors import ConfigError, did_you_mean

# Names torchtune uses for what is one script here, whatever the number of devices.
ALIASES = {
    "full_finetune_distributed": "full_finetune_single_device",
    "lora_finetune_distributed": "lora_finetune_single_device",
    "dev/generate_v2": "generate",
}

DPO, RL = "preference training (DPO)", "reinforcement learning (PPO, GRPO)"
QAT, DISTILLATION = "quantisation-aware training", "knowledge distillation"
# torchtune's other recipes, and what is not served yet of what they do.
NOT_SERVED = {
    **dict.fromkeys(("lora_dpo_single_device", "lora_dpo_distributed", "full_dpo_distributed"), DPO),
    **dict.fromkeys(("ppo_full_finetune_single_device", "dev/grpo_full_finetune_distributed"), RL),
    "dev/async_grpo_full_finetune_distributed": RL,
    **dict.fromkeys(("qat_single_device", "qat_distributed", "qat_lora_finetune_distributed"), QAT),
    **dict.fromkeys(("knowledge_distillation_single_device", "knowledge_distillation_distributed"), DISTILLATION),
    "dev/generate_v2_distributed": "a model on several devices",
    "dev/lora_finetune_distributed_multi_dataset": "training on images",
    "dev/early_exit_finetune_distributed": "training with early exits",
}


class Recipe(NamedTuple):
    """A script that `tune run` starts, with the names of its configs and its aliases: none for a user's own script."""

    name: str
    path: Path
    configs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def folder(name: str) -> Path:
    """Return `recipes` or `configs`: inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


def recipe_key(name_or_path: str | Path) -> str | None:
    """Return the recipe that a config says it is for; None when it does not have the key `recipe`.

    Raise `ConfigError` for a config that is not there or cannot be read.
    """
    from torchtune_lite.config.text.includes import read

    recipe = read(find_config(name_or_path), str(name_or_path)).values.get("recipe")
    if recipe is not None and not isinstance(recipe, str):
        raise ConfigError(f"{name_or_path}: 'recipe' is {recipe!r}, not the name of a recipe ('tune ls' shows all)")
    return recipe


def configs() -> dict[str, Path]:
    """Return every config by name, such as `llama2/7B_qlora_single_device`."""
    root = folder("configs")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def recipes() -> list[Recipe]:
    """Return every recipe with its configs, both sorted by name."""
    served = {name: _shipped_for(path) for name, path in configs().items()}
    return [
        Recipe(
            name=path.stem,
            path=path,
            configs=tuple(config for config, recipe in served.items() if recipe == path.stem),
            aliases=tuple(alias for alias, recipe in ALIASES.items() if recipe == path.stem),
        )
        for path in sorted(folder("recipes").glob("[!_]*.py"))
    ]


def _shipped_for(config: Path) -> str | None:
    """Read the key `recipe` of a shipped config as plain text: loading YAML would double the time of `tune ls`."""
    found = re.search(r"^recipe: (\S+)", config.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def recipes_by_name() -> dict[str, Recipe]:
    """Return every recipe by its name and by each alias."""
    return {name: recipe for recipe in recipes() for name in (recipe.name, *recipe.aliases)}


def find_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of that name or alias, or the user's own script at that path.

    Raise `ConfigError` with the nearest names when there is neither.
    """
    known = recipes_by_name()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if path.suffix == ".py" and path.is_file():
        return Recipe(path.stem, path.resolve())
    raise ConfigError(_not_found("recipe", name_or_path, known))


def find_config(name_or_path: str | Path) -> Path:
    """Return the path of the config of that name, or the user's own file at that path.

    Raise `ConfigError` with the nearest names when there is neither.
    """
    known = configs()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise ConfigError(_not_found("config", name_or_path, known))


def _not_found(kind: str, given: str | Path, known: dict) -> str:
    if str(given) in (recipes_by_name() if kind == "config" else configs()):
        return f"'{given}' is a {'recipe' if kind == 'config' else 'config'}, not a {kind} ('tune ls' shows all)"
    if kind == "recipe" and str(given) in NOT_SERVED:
        return f"there is no recipe '{given}': {NOT_SERVED[str(given)]} is not served yet ('tune ls' shows all)"
    name = re.sub(r"\.(py|ya?ml)$", "", str(given))
    return f"there is no {kind} '{given}'{did_you_mean(name, known)} ('tune ls' shows all)"
