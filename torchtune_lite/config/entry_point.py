"""The way from the command line to a recipe's `Settings`."""

import ast
import functools
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torchtune_lite import catalog, errors
from torchtune_lite.config import torchtune, unsupported
from torchtune_lite.config.registry import trust
from torchtune_lite.config.schema import settings
from torchtune_lite.config.text import includes, overrides
from torchtune_lite.config.text.interpolation import referred, resolve
from torchtune_lite.errors import ConfigError
from torchtune_lite.tracebacks import shown

S = TypeVar("S")

OTHER_OPTION = re.compile(r"(?:--?(?:c|cfg|conf|config[-_](?:file|path|name))|-config|config(?==))(?:=(.*))?")
"""Other tools' names of `--config`."""


def parse(cls: type[S]) -> Callable[[Callable[[S], Any]], Callable[[], Any]]:
    """Make `recipe_main(cfg)` a command that reads `--config NAME_OR_PATH key=value ...` into a `cls`.

    `--allow-component 'pkg.*'` trusts another package. A mistake of the user ends the program with one line on stderr
    and the exit code of its error; `--debug` shows the traceback.
    """
    if not isinstance(cls, type):  # the function itself, which torchtune's `parse` takes
        with errors.reporting():
            raise ConfigError(_unported(inspect.getfile(cls), cls.__code__.co_firstlineno))

    def decorator(recipe_main: Callable[[S], Any]) -> Callable[[], Any]:
        @functools.wraps(recipe_main)
        def command() -> Any:
            words = sys.argv[1:]
            with errors.reporting("--debug" in words):
                allowed, rest = trust.take_allowed([word for word in words if word != "--debug"])
                config, changes = read_words(rest)
                if not config:
                    raise ConfigError("name a config with --config ('tune ls' shows all), or the path of a YAML file")
                with trust.trusting(allowed, inspect.getfile(cls)):
                    return recipe_main(load(config, changes, cls))

        return command

    return decorator


def check_ported(script: Path) -> None:
    """Raise `ConfigError` for a script of torchtune's, known by `@config.parse` without a class of settings."""
    for node in ast.walk(ast.parse(script.read_bytes(), str(script))):
        for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if ast.unparse(decorator) == "config.parse":
                raise ConfigError(_unported(script, decorator.lineno))


def _unported(script: str | Path, line: int) -> str:
    needs = "@config.parse needs the class of the recipe's keys, @config.parse(Settings)"
    return f"{shown(script)}:{line}: {needs}; {errors.PORTING}"


def read_words(words: Sequence[str], command: str = "") -> tuple[str, list[str]]:
    """Split a command line into the config after `--config`, empty where there is none, and the overrides.

    Raise `ConfigError` for two configs, and for one that is named in another way, with the command that is meant.
    """
    found, changes, rest = [], [], iter(words)
    for word in rest:
        if word == "--config":
            found.append(next(rest, ""))
        elif word.startswith("--config="):
            found.append(word.removeprefix("--config="))
        else:
            changes.append(word)
    if len(found) > 1:
        raise ConfigError(f"--config is given {len(found)} times ({', '.join(found)}); name one config")
    if not found and (meant := _config_meant(changes)):
        config, others = meant
        raise ConfigError(
            f"name the config with --config: {shlex.join([*command.split(), '--config', config, *others])}"
        )
    return "".join(found), changes


def _config_meant(words: list[str]) -> tuple[str, list[str]] | None:
    """Find a config named as `-c x`, `--cfg=x`, `config=x` or by itself; return it and the other words."""
    for i, word in enumerate(words):
        option = OTHER_OPTION.fullmatch(word)
        if option and option[1] is not None:
            return option[1], [*words[:i], *words[i + 1 :]]
        if option and i + 1 < len(words):
            return words[i + 1], [*words[:i], *words[i + 2 :]]
        if word in catalog.configs() or (word.endswith((".yaml", ".yml")) and "=" not in word):
            return word, [*words[:i], *words[i + 1 :]]
    return None


def load(config: str | Path, changes: Sequence[str], cls: type[S]) -> S:
    """Return the settings `cls` that a config and the overrides on top of it describe.

    Every component is imported and its arguments are checked, but none is built. Raise one `ConfigError` that lists
    all problems, each with its file and line or the override it came from.
    """
    doc = includes.read(catalog.find_config(config), str(config))
    problems = overrides.apply(doc, changes)
    needed = set(referred(doc.values))
    doc.own |= needed
    known = settings.names(cls)
    for key in [key for key in doc.own - needed if doc.values.get(key) == "???" and key not in known]:
        del doc.values[key]  # nothing refers to it any more
    problems += resolve(doc)
    doc.values.pop("recipe", None)
    torchtune.share_out(doc, known)
    problems += unsupported.drop(doc, known)
    problems += torchtune.translate(doc, settings.losses(cls))
    made, found = settings.build(cls, doc)
    problems += found
    if made is None or problems:
        raise ConfigError(*problems)
    return made


def settings_of(recipe: Path) -> type:
    """Return the class `Settings` of a recipe's script, which is imported but not run."""
    check_ported(recipe)
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up a class's annotations
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "Settings", None), type):
        raise ConfigError(
            f"{recipe} has no class Settings; a recipe declares its keys there, as the recipes of 'tune ls' do"
        )
    return module.Settings
