"""The `tune` command: read the verb and import its file alone, so that every command answers at once."""

import argparse
import importlib
import shlex
import sys
from typing import NoReturn

from torchtune_lite import __version__, errors

VERBS = {
    "ls": "list the recipes and their configs",
    "cp": "clone a recipe or a config, to edit it",
    "cat": "print a config",
    "run": "run a recipe with a config",
    "chat": "talk with the model of a run, or any other",
    "generate": "answer a prompt, or each row of a file",
    "serve": "answer over HTTP, in the form of OpenAI's API",
    "eval": "score the model of a run, or any other",
    "validate": "check a config without running it",
    "inspect": "show what a config will train on",
    "export": "write a model in the files that other programs take",
    "import": "make a folder to fine-tune of a GGUF",
    "merge": "merge adapters, each with a weight, into their base",
    "env": "show versions, devices and what is missing",
    "download": "fetch a model from the Hugging Face hub",
    "upload": "send a checkpoint to the Hugging Face hub",
    "completion": "print the script that completes words in a shell",
}
CONFIG_FIRST = ("cat", "validate", "inspect")  # verbs whose first word is a config
FOLDER_FIRST = ("chat", "generate", "serve")  # verbs, called as their recipes are, whose first word is a model's folder
HIDDEN = ("complete",)  # what that script calls

HELP = f"""\
usage: tune [--debug] VERB ...

Fine-tuning of language models with PyTorch code that people can read.

{"".join(f"  {verb:<12}{does}{chr(10)}" for verb, does in VERBS.items())}
  tune VERB --help   what the verb takes
  --version          print the version
  --debug            show the whole traceback of an error

  tune cp llama2/7B_qlora_single_device my.yaml
  tune run lora_finetune_single_device --config my.yaml model.lora_rank=16
"""


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line like every other error's."""

    def error(self, message: str) -> NoReturn:
        raise errors.ConfigError(f"{message} ('{self.prog} --help' shows what it takes)")


def main() -> None:
    """Run `tune` with the arguments of this process."""
    words = sys.argv[1:]
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with errors.reporting(debug):
        if not words or words[0] in ("-h", "--help", "help"):
            print(HELP, end="")
        elif words[0] == "--version":
            print(f"torchtune_lite {__version__}")
        else:
            start(*words, debug=debug)


def run_meant(verb: str, words: tuple[str, ...]) -> str:
    """Return the command that is meant where the verb is a recipe or a config, or nothing."""
    from torchtune_lite import catalog
    from torchtune_lite.cli.verbs.run import command_meant, is_config

    if is_config(verb):
        return f"; did you mean '{command_meant([verb, *words])}'?"
    is_recipe = verb in catalog.recipes_by_name() or verb.endswith(".py")
    return f"; did you mean '{shlex.join(['tune', 'run', verb, *words])}'?" if is_recipe else ""


def start(verb: str, *words: str, debug: bool = False) -> None:
    """Run one verb with the words that follow it.

    Raise `ConfigError` when the verb or its arguments cannot be understood.
    """
    if verb not in (*VERBS, *HIDDEN):
        nearest = errors.did_you_mean(verb, VERBS) or run_meant(verb, words)
        raise errors.ConfigError(f"there is no 'tune {verb}'{nearest} ('tune --help' lists the verbs)")
    if verb in CONFIG_FIRST and any(word.partition("=")[0] == "--config" for word in words):
        from torchtune_lite.config.entry_point import read_words

        config, others = read_words(words)
        words = (config, *others)  # as 'tune run' has it
    module = importlib.import_module(f"torchtune_lite.cli.verbs.{verb}")
    parser = Parser(
        prog=f"tune {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    parse = parser.parse_intermixed_args  # options may stand among the overrides
    if verb == "run" and words and words[0] not in ("-h", "--help"):
        words, parse = ("--", *words), parser.parse_args  # the recipe reads them, dashes included
    module.main(parse(words, argparse.Namespace(debug=debug)))
