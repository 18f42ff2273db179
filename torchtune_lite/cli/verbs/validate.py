"""Check a config without running it: every key, component and argument, before any weight is read.

  tune validate my.yaml optimizer.lr=1e-4

A config may name the builders of torchtune_lite, the losses of torch.nn, the optimizers and schedules of torch.optim,
the optimizers of torchao and bitsandbytes, and what modules in the working directory define; what else it names must
be trusted with --allow-component, or in TORCHTUNE_LITE_ALLOW_COMPONENT.

Whether files and checkpoints exist, only a run finds out; but of a model that comes from its checkpoint
(models.from_checkpoint) that is looked at, and a line says which family, size and template were found.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torchtune_lite import catalog
from torchtune_lite.errors import ConfigError


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune validate`."""
    parser.add_argument("config", help="name of a config ('tune ls' shows all) or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what 'tune run' would change")
    parser.add_argument("--recipe", help="name or path of the recipe (default: what the config's key 'recipe' says)")
    parser.add_argument("--allow-component", action="append", default=[], metavar="'pkg.*'", help="a package to trust")


def main(args: Namespace) -> None:
    """Print one line when the recipe would accept the config, and one on the model that a checkpoint gives."""
    with settings(args) as cfg:
        # by its name: what reads checkpoints stands above this package, and imports torch
        found = import_module("torchtune_lite.checkpoint").found(cfg)
    print("Config is well-formed.", *filter(None, [found]), sep="\n")


@contextmanager
def settings(args: Namespace) -> Iterator[Any]:
    """Give the checked settings of the config and the overrides, for what is trusted meanwhile.

    A script that the config itself names is imported, so it must be the user's own, in the working directory.
    """
    from torchtune_lite import config
    from torchtune_lite.config.registry import trust

    name = args.recipe or catalog.recipe_key(args.config)
    if not name:
        raise ConfigError(f"{args.config} does not name its recipe; add --recipe RECIPE ('tune ls' shows all)")
    recipe = catalog.find_recipe(name)
    if not args.recipe and name.endswith(".py") and not trust.is_own_file(recipe.path):
        raise ConfigError(
            f"{args.config} names a script outside the working directory; add --recipe {name} to trust it"
        )
    with config.trusting(args.allow_component, recipe.path):
        yield config.load(args.config, args.overrides, config.settings_of(recipe.path))
