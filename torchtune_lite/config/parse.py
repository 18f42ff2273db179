"""The way from the command line to a recipe's `Settings`."""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torchtune_lite import catalog, errors
from torchtune_lite.config import document, overrides, settings, torchtune, trust, unsupported
from torchtune_lite.config.interpolation import referred, resolve
from torchtune_lite.errors import ConfigError

S = TypeVar("S")


def parse(cls: type[S]) -> Callable[[Callable[[S], Any]], Callable[[], Any]]:
    """Makes `recipe_main(cfg)` a command that reads `--config NAME_OR_PATH key=value ...` into a `cls`.

    `--allow-component 'pkg.*'` trusts a package besides. A mistake of the user ends the program with one line on stderr
    and the exit code of its error; `--debug` shows the traceback.
    """

    def decorator(recipe_main: Callable[[S], Any]) -> Callable[[], Any]:
        @functools.wraps(recipe_main)
        def command() -> Any:
            words = sys.argv[1:]
            with errors.reporting("--debug" in words):
                config, changes = read_words(trust.take_allowed([word for word in words if word != "--debug"]))
                if not config:
                    raise ConfigError("name a config with --config ('tune ls' shows all), or the path of a YAML file")
                return recipe_main(load(config, changes, cls))

        return command

    return decorator


def read_words(words: Sequence[str]) -> tuple[str, list[str]]:
    """Splits a command line into the config after `--config`, empty where there is none, and the overrides."""
    config, changes, rest = "", [], iter(words)
    for word in rest:
        if word == "--config":
            config = next(rest, "")
        elif word.startswith("--config="):
            config = word.removeprefix("--config=")
        else:
            changes.append(word)
    return config, changes


def load(config: str | Path, changes: Sequence[str], cls: type[S]) -> S:
    """Returns the settings `cls` that a config and the overrides on top of it describe.

    Every component is imported and its arguments are checked, but none is built. Raises one `ConfigError` that lists
    all problems, each with its file and line or the override it came from.
    """
    trust.allow_beside(inspect.getfile(cls))
    doc = document.read(catalog.find_config(config), str(config))
    problems = overrides.apply(doc, changes)
    own = set(referred(doc.values))
    problems += resolve(doc)
    doc.values.pop("recipe", None)
    problems += unsupported.drop(doc, settings.names(cls))
    problems += torchtune.translate(doc, settings.losses(cls))
    made, found = settings.build(cls, doc, own)
    problems += found
    if made is None or problems:
        raise ConfigError(*problems)
    return made


def settings_of(recipe: Path) -> type:
    """Returns the class `Settings` of a recipe's script, which is imported but not run."""
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up a class's annotations
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "Settings", None), type):
        raise ConfigError(f"{recipe} has no class Settings; a recipe declares its keys there, as those of 'tune ls' do")
    return module.Settings
