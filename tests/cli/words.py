"""The settings that the words of `tune run` give."""

from typing import Any

from torchtune_lite import catalog, config


def settings(words: list[str]) -> Any:
    recipe, flag, name, *changes = words
    assert flag == "--config"
    changes = [word for word in changes if not word.startswith("--allow-component")]
    return config.load(name, changes, config.settings_of(catalog.find_recipe(recipe).path))
