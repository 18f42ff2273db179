"""Print a config, to see which keys can be changed."""

from argparse import ArgumentParser, Namespace

from torchtune_lite import catalog


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune cat`."""
    parser.add_argument("config", help="name of a config ('tune ls' shows all) or path of a YAML file")
    parser.add_argument("--sort", action="store_true", help="sort the keys, and leave the comments out")
    parser.add_argument("--as-is", action="store_true", help="leave 'include' unresolved: only the file's own keys")


def main(args: Namespace) -> None:
    """Print the file with what it includes, or its keys in sorted order."""
    from torchtune_lite.config.text import completion, document, includes

    path = catalog.find_config(args.config)
    if not args.sort:
        text = (document.read_text if args.as_is else completion.complete)(path, args.config)
        print(text, end="")
        return
    read = document.read if args.as_is else includes.read
    print(document.written(read(path, args.config).values, sort_keys=True), end="")
