"""Talk with a model: that of a run, a checkpoint, an adapter, or any model's folder.

  tune chat runs/x
  tune chat runs/x temperature=0 --system 'Be brief.'
  printf 'a question\\nanother one\\n' | tune chat runs/x > answers.txt

Template, base, adapter and dtype are those of the training, out of the folder's own files. /help lists the commands of
a conversation. Where stdin or stdout is not a terminal, each line is a question, and only answers are printed.
"""

from argparse import ArgumentParser, Namespace

from torchtune_lite.cli import asking

RECIPE, CONFIG = "chat", "chat"


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune chat`."""
    asking.configure(parser, RECIPE)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe and of its components")


def main(args: Namespace) -> None:
    """Start the conversation."""
    then = "score it: tune eval FOLDER --questions FILE.jsonl"
    asking.main(RECIPE, CONFIG, args, args.overrides, then)
