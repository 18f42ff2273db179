"""Answer a prompt, or each row of a file, with the model of a run, a checkpoint, an adapter, or any model's folder.

  tune generate runs/x 'Tell me a joke.' temperature=0
  tune generate runs/x --file prompts.jsonl --out answers.jsonl

Template, base, adapter and dtype are those of the training, out of the folder's own files. A row of the file has
`prompt` or `input`, a question, or `messages`, a conversation. Started again, it goes on where it was stopped.
"""

import re
from argparse import ArgumentParser, Namespace

from torchtune_lite import catalog
from torchtune_lite.cli import asking, keys
from torchtune_lite.errors import ConfigError, nearest

RECIPE, CONFIG = "generate", "generation"
KEY_VALUE = re.compile(r"~?([A-Za-z_]\w*)[\w.\[\]]*(=|$)")


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune generate`."""
    asking.configure(parser, RECIPE, without=("prompt",))
    parser.add_argument("words", nargs="*", metavar="PROMPT key=value", help="the question; keys of the recipe")


def main(args: Namespace) -> None:
    """Print the answer, or write those to the rows of a file."""
    known = keys.names(catalog.find_recipe(RECIPE).path)
    changes = [word for word in args.words if is_change(word, known)]
    prompts = [word for word in args.words if word not in changes]
    if len(prompts) > 1:
        raise ConfigError(f"there are {len(prompts)} prompts, {', '.join(map(repr, prompts))}; put one in quotes")
    prompt = {"user": prompts[0]} if prompts else None
    asking.main(RECIPE, CONFIG, args, [asking.override("prompt", prompt), *changes])


def is_change(word: str, known: list[str]) -> bool:
    """Tell `key=value` and `~key`, of a key that is known or nearly, from a prompt."""
    found = KEY_VALUE.match(word)
    key = found and (found[2] or word[0] == "~") and found[1]
    return bool(key) and (key in known or nearest(key, known) is not None)
