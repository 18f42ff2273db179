"""Print a config, to see which keys can be changed."""

from argparse import ArgumentParser, Namespace

from torchtune_lite import catalog


def configure(parser: ArgumentParser) -> None:
    """Declares the arguments of `tune cat`."""
    parser.add_argument("config", help="name of a config ('tune ls' shows all) or path of a YAML file")
    parser.add_argument("--sort", action="store_true", help="sort the keys; leaves the comments out")


def main(args: Namespace) -> None:
    """Prints the file as it is, or its keys in sorted order."""
    from torchtune_lite.config.text.document import read, read_text

    path = catalog.find_config(args.config)
    if not args.sort:
        print(read_text(path, args.config), end="")
        return
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(read(path, args.config).values, sort_keys=True), end="")
