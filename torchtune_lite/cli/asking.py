"""What the verbs about a folder share: it is the model of a recipe, whose keys may be options, too."""

import json
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from torchtune_lite import catalog
from torchtune_lite.cli import keys
from torchtune_lite.cli.lazy_compiler import make_compiler_lazy
from torchtune_lite.cli.verbs import run
from torchtune_lite.utils import get_logger

KEY = "key "
"""Starts the name of an argument that is a key of the recipe."""


def configure(parser: ArgumentParser, recipe: str, without: Sequence[str] = ()) -> None:
    """Declare the folder, the options about it, and an option for each key of the recipe, `without` some."""
    configure_folder(parser)
    group = parser.add_argument_group("keys", "also as key=value; --help of 'tune run' has their bounds")
    for key in keys.read(catalog.find_recipe(recipe).path):
        if key.kind != "component" and key.name not in without:
            meaning = f"{key.meaning} (default: {key.default})".replace("%", "%%")
            option = f"--{key.name.replace('_', '-')}"
            group.add_argument(option, dest=f"{KEY}{key.name}", metavar=key.kind.replace(" or ", "|"), help=meaning)


def configure_folder(parser: ArgumentParser) -> None:
    """Declare the folder and the options about it."""
    parser.add_argument("folder", metavar="FOLDER", help="a run's output_dir, a checkpoint, an adapter, or a model")
    parser.add_argument("--base", metavar="FOLDER", help="the base of an adapter (default: the one its files name)")
    parser.add_argument("--allow-component", action="append", default=[], metavar="'pkg.*'", help="a package to trust")


def main(recipe: str, config: str, args: Namespace, changes: Sequence[str], then: str | None = None) -> None:
    """Ask the folder by the recipe; `changes` are overrides, laid over what the folder says; `then` as `run_recipe`."""
    run_recipe(recipe, config, args, lambda found: found.answering_values, [*options(recipe, args), *changes], then)


def run_recipe(
    recipe: str,
    config: str,
    args: Namespace,
    values: Callable[[Any], Mapping[str, Any]],
    changes: Sequence[str],
    then: str | None = None,
) -> None:
    """Run the recipe on the folder, with the `values` of keys that its `checkpoint.ModelFolder` gives.

    `then` is what people do next: a few words and a command, in which FOLDER stands for the folder.
    """
    run.set_environment()
    make_compiler_lazy()
    log = get_logger()
    # by its name: what reads checkpoints stands above this package, and imports torch
    found = import_module("torchtune_lite.checkpoint").find_model(args.folder, args.base)
    log.info("%s", found)
    known = keys.names(catalog.find_recipe(recipe).path)
    words = [override(key, value) for key, value in values(found).items() if key in known]
    trusted = [f"--allow-component={pattern}" for pattern in args.allow_component]
    try:
        run.main(Namespace(words=[recipe, "--config", config, *trusted, *words, *changes], debug=args.debug))
    except SystemExit as end:
        if then and not end.code:
            log.info("%s", then.replace("FOLDER", shlex.quote(args.folder)))
        raise


def options(recipe: str, args: Namespace) -> list[str]:
    """Return the keys that were given as options, as overrides: texts as they stand, all else as YAML."""
    kinds = {key.name: key.kind.split(" or ") for key in keys.read(catalog.find_recipe(recipe).path)}
    given = {name.removeprefix(KEY): value for name, value in vars(args).items() if name.startswith(KEY)}
    return [
        override(key, value) if {"str", "path"} & {*kinds[key]} and value != "null" else f"{key}={value}"
        for key, value in given.items()
        if value is not None
    ]


def override(key: str, value: Any) -> str:
    """Write a key and its value as a word of the command line, in which nothing is interpolated."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\\\${", json.dumps(value, ensure_ascii=False))
    return f"{key}={text}"
