"""Check a config without running it: every key, component and argument, before any weight is read.

  tune validate my.yaml optimizer.lr=1e-4

A config may name objects of torchtune_lite, torch.nn, torch.optim, torchao, bitsandbytes and of modules in the working
directory; what else it names must be trusted with --allow-component, or in TORCHTUNE_LITE_ALLOW_COMPONENT.

Whether files and checkpoints exist, only a run finds out.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from torchtune_lite import catalog
from torchtune_lite.errors import ConfigError


def configure(parser: ArgumentParser) -> None:
    """Declares the arguments of `tune validate`."""
    parser.add_argument("config", help="name of a config ('tune ls' shows all) or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what 'tune run' would change")
    parser.add_argument("--recipe", help="name or path of the recipe (default: what the config's key 'recipe' says)")
    parser.add_argument("--allow-component", action="append", default=[], metavar="'pkg.*'", help="a package to trust")


def main(args: Namespace) -> None:
    """Prints one line when the recipe would accept the config."""
    settings(args)
    print("Config is well-formed.")


def settings(args: Namespace) -> Any:
    """Returns the checked settings of the config and the overrides.

    A script that the config itself names is imported, so it must lie in the working directory.
    """
    name = args.recipe or catalog.recipe_key(args.config)
    if not name:
        raise ConfigError(f"{args.config} does not say whose it is; add --recipe RECIPE ('tune ls' shows all)")
    recipe = catalog.find_recipe(name)
    if not args.recipe and name.endswith(".py") and not recipe.path.is_relative_to(Path.cwd().resolve()):
        raise ConfigError(
            f"{args.config} names a script outside the working directory; add --recipe {name} to trust it"
        )

    from torchtune_lite import config

    for pattern in args.allow_component:
        config.allow(pattern)
    return config.load(args.config, args.overrides, config.settings_of(recipe.path))
