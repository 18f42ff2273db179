"""Check a config without running it: every key, component and argument, before any weight is read.

  tune validate my.yaml optimizer.lr=1e-4

Whether files and checkpoints exist, only a run finds out.
"""

from argparse import ArgumentParser, Namespace

from torchtune_lite import catalog
from torchtune_lite.errors import ConfigError


def configure(parser: ArgumentParser) -> None:
    """Declares the arguments of `tune validate`."""
    parser.add_argument("config", help="name of a config ('tune ls' shows all) or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what 'tune run' would change")
    parser.add_argument("--recipe", help="name or path of the recipe (default: what the config's key 'recipe' says)")


def main(args: Namespace) -> None:
    """Prints one line when the recipe would accept the config."""
    name = args.recipe or catalog.recipe_key(catalog.find_config(args.config))
    if not name:
        raise ConfigError(f"{args.config} does not say whose it is; add --recipe RECIPE ('tune ls' shows all)")
    recipe = catalog.find_recipe(name)

    from torchtune_lite import config

    config.load(args.config, args.overrides, config.settings_of(recipe.path))
    print("Config is well-formed.")
