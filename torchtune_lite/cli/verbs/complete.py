"""Complete a command line, for the scripts of `tune completion` at each Tab. Imports no torch, prints no error."""

import argparse
import importlib
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtune_lite import catalog
from torchtune_lite.cli import keys
from torchtune_lite.cli.main import CONFIG_FIRST, FOLDER_FIRST, VERBS
from torchtune_lite.cli.verbs.eval import RECIPES

RECIPE, YAML, ANY = (".py",), (".yaml", ".yml"), ("",)


def configure(parser: ArgumentParser) -> None:
    """Declare the argument of `tune complete`."""
    parser.add_argument("line", help="the command line up to the cursor")


def main(args: Namespace) -> None:
    """Print the words that the last one of the line can become, one a line."""
    try:
        found = sorted(set(words(args.line)))
    except Exception:  # a config that is being written may be anything; errors do not belong on a shell's prompt
        return
    sys.stdout.write("".join(f"{each}\n" for each in found))


def words(line: str) -> Iterator[str]:
    """Yield what the last word of the line can become; it is empty after a space."""
    _, *before, word = re.split(r"\s+", line.lstrip())
    return (each for each in _candidates([each for each in before if each != "--debug"], word) if each.startswith(word))


def _candidates(before: list[str], word: str) -> Iterator[str]:
    if not before:
        yield from (*VERBS, "--help", "--version", "--debug")
        return
    verb, *rest = before
    if verb not in VERBS:
        return
    if rest[-1:] == ["--config"]:
        yield from configs(word)
    elif word.startswith("--config="):
        yield from (f"--config={each}" for each in configs(word.partition("=")[2]))
    elif rest[-1:] == ["--recipe"]:
        yield from recipes(word)
    elif rest and rest[-1] in ("--base", "--file", "--out", "--questions", "--text"):
        yield from files(word, ANY)
    elif word.startswith("-"):
        yield from options(verb)
    else:
        yield from _positional(verb, rest, word)


def _positional(verb: str, rest: list[str], word: str) -> Iterator[str]:
    takes_value = ("--config", "--recipe", "--type", "--rows", "--allow-component")
    given = [each for i, each in enumerate(rest) if each[0] != "-" and (i == 0 or rest[i - 1] not in takes_value)]
    if verb == "completion" and not given:
        yield from ("bash", "zsh")
    elif verb == "cp":
        yield from files(word, ANY) if given else [*recipes(""), *catalog.configs()]
    elif verb == "run":
        config = re.search(r"--config[ =](\S+)", " ".join(rest))
        if not given:
            yield from recipes(word)
        elif config is None:
            yield "--config"
        else:
            yield from overrides(values_of(config[1]), given[0], word)
    elif verb in FOLDER_FIRST or verb == "eval":
        if not given:
            yield from files(word, ())
        else:
            asked = next((each.partition("=")[0].removeprefix("--") for each in rest if each.startswith("--")), "")
            recipe = RECIPES[asked][0] if asked in RECIPES else verb
            yield from (f"{key}=" for key in keys.names(catalog.find_recipe(recipe).path))
    elif verb in CONFIG_FIRST:
        if not given:
            yield from configs(word)
        elif verb != "cat":
            values = values_of(given[0])
            recipe = rest[rest.index("--recipe") + 1] if "--recipe" in rest else values.get("recipe")
            yield from overrides(values, recipe, word)


def recipes(word: str) -> Iterator[str]:
    """Yield the recipes and the user's own scripts."""
    for recipe in catalog.recipes():
        yield from (recipe.name, *recipe.aliases)
    yield from files(word, RECIPE)


def configs(word: str) -> Iterator[str]:
    """Yield the configs and the user's own YAML files."""
    yield from catalog.configs()
    yield from files(word, YAML)


def files(word: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the files with one of the suffixes, and the folders with a slash, that start with `word`."""
    head, slash, tail = word.rpartition("/")
    for path in Path(head + slash or ".").glob("*"):
        if not path.name.startswith(tail) or (path.name.startswith(".") and not tail):
            continue
        if path.is_dir():
            yield f"{head}{slash}{path.name}/"
        elif path.name.endswith(suffixes):
            yield f"{head}{slash}{path.name}"


def options(verb: str) -> list[str]:
    """Return the options of a verb."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"torchtune_lite.cli.verbs.{verb}").configure(parser)
    more = ["--config", "--allow-component"] if verb == "run" else []
    return [*re.findall(r"--[\w-]+", parser.format_help()), *more]


def values_of(config: str) -> dict[str, Any]:
    """Return the keys and values of a config."""
    from torchtune_lite.config.text.includes import read

    return read(catalog.find_config(config)).values


def overrides(values: dict[str, Any], recipe: str | None, word: str) -> Iterator[str]:
    """Yield `key=` for each key of the config, at any depth, and each top-level one of the recipe; or `~key`."""
    from torchtune_lite.config.text import document

    in_file = list(document.keys(values))
    if word.startswith("~"):
        yield from (f"~{key}" for key in in_file)
        return
    yield from (f"{key}=" for key in in_file if key != "recipe")
    if recipe:
        yield from (f"{key}=" for key in keys.names(catalog.find_recipe(recipe).path))
