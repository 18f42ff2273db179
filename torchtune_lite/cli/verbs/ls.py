"""List the recipes and their configs."""

from argparse import ArgumentParser, Namespace

from torchtune_lite import catalog


def configure(parser: ArgumentParser) -> None:
    """`tune ls` takes no arguments."""


def main(args: Namespace) -> None:
    """Print one row per config; `<>` stands for a recipe that has none."""
    print(f"{'RECIPE':<40} CONFIG")
    for recipe in catalog.recipes():
        for name, config in zip([recipe.name] + [""] * len(recipe.configs), recipe.configs or ("<>",), strict=False):
            print(f"{name:<40} {config}")
        for alias in recipe.aliases:
            print(f"{alias:<40} (the same script as {recipe.name})")
