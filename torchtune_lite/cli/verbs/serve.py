"""Serve the model of a run, a checkpoint, an adapter, or any model's folder, in the form of OpenAI's API.

  tune serve runs/x
  tune serve runs/x port=8080 slots=32 --name my-model

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "a question"}]}'

Template, base, adapter and dtype are those of the training, out of the folder's own files. It is for trying a model
out: there is no password and no encryption, and the address is this machine's alone, unless host= says otherwise.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from torchtune_lite.cli import asking

RECIPE, CONFIG = "serve", "serve"


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune serve`."""
    asking.configure(parser, RECIPE)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe and of its components")


def main(args: Namespace) -> None:
    """Start the server."""
    named = getattr(args, f"{asking.KEY}name") is not None
    name = [] if named else [asking.override("name", Path(args.folder).resolve().name)]
    asking.main(RECIPE, CONFIG, args, [*name, *args.overrides])
