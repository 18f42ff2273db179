"""Run a recipe with a config.

  tune run lora_finetune_single_device --config my.yaml model.lora_rank=16
  tune run my_recipe.py --config my.yaml '~lr_scheduler' seed=null
  tune run --nproc_per_node 4 lora_finetune_distributed --config my.yaml

key=value sets a key of the config, at any depth (optimizer.lr=1e-4, dataset.0.source=a.jsonl, tasks=[a,b]);
~key removes one. --allow-component 'pkg.*' lets the config name objects of a package besides those that are
trusted (see 'tune validate --help'). 'tune run RECIPE --help' says what the recipe does and lists its keys.
Before the recipe's name stand the arguments of torchrun, for a training in several processes (docs/distributed.md).
"""

import ast
import atexit
import gc
import importlib
import os
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser, Namespace

from torchtune_lite import catalog, worker
from torchtune_lite.cli import keys
from torchtune_lite.cli.lazy_compiler import make_compiler_lazy
from torchtune_lite.errors import ConfigError

TORCHRUN = re.compile(
    r"--(nproc|nnodes|node|rdzv|standalone|max[_-]restarts|monitor[_-]interval|start[_-]method|role|module|no[_-]python"
    r"|run[_-]path|log|redirects|tee|local[_-]|master[_-]|event|duplicate|numa|signals|shutdown|virtual)"
)


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune run`; the recipe reads what follows its name."""
    parser.add_argument("words", nargs="*", metavar="RECIPE --config CONFIG key=value ...")


def main(args: Namespace) -> None:
    """Run the recipe's script as `__main__`, as `python recipe.py --config …` would."""
    if args.words and TORCHRUN.match(args.words[0]):
        start_processes(args.words, args.debug)
        return
    for word in args.words:
        if TORCHRUN.match(word):
            raise ConfigError(
                f"'{word}' is for torchrun: put it before the recipe, 'tune run {word} … RECIPE --config …'"
            )
    if not args.words or args.words[0].startswith("-") or "=" in args.words[0] or is_config(args.words[0]):
        raise ConfigError(f"name the recipe first: {command_meant(args.words)} ('tune ls' shows all)")

    name, *rest = args.words
    recipe = catalog.find_recipe(name)
    if "--help" in rest or "-h" in rest:
        print(help_of(name, recipe))
        return
    check_config(name, recipe, rest)
    sys.argv = [str(recipe.path), *rest, *(["--debug"] if args.debug else [])]
    if is_own_script(name):
        from torchtune_lite.config.entry_point import check_ported

        check_ported(recipe.path)
        sys.path.insert(0, str(recipe.path.parent))
    set_environment()
    worker.end_with_agent()
    make_compiler_lazy()
    atexit.register(gc.freeze)  # else Python's end looks through all objects of torch once more: a second and a half
    runpy.run_path(str(recipe.path), run_name="__main__")


def start_processes(words: list[str], debug: bool) -> None:
    """Run the recipe in several processes, as torchrun's arguments before its name say."""
    launcher = importlib.import_module("torchtune_lite.launcher")  # which imports torch
    arguments = launcher.parse(words)
    name, rest = arguments.training_script, arguments.training_script_args
    recipe = catalog.find_recipe(name)
    if "--help" in rest or "-h" in rest:
        print(help_of(name, recipe))
        return
    check_config(name, recipe, rest)
    if "parallel" not in keys.names(recipe.path):
        raise ConfigError(f"{name} runs in one process; leave the arguments of torchrun out")
    set_environment()
    launcher.launch(arguments, ["-m", "torchtune_lite", *(["--debug"] if debug else []), "run", name, *rest])


def help_of(name: str, recipe: catalog.Recipe) -> str:
    """Return a recipe's docstring and its keys, with their defaults and what they mean."""
    parts = [ast.get_docstring(keys.parsed(recipe.path)) or f"{name} has no docstring"]
    if table := keys.shown(keys.read(recipe.path)):
        parts.append(
            f"Keys of its config, overridden by key=value (a component is a _component_ with arguments):\n\n{table}"
        )
    if recipe.configs:
        parts.append(f"Configs: {', '.join(recipe.configs)}")
    return "\n\n".join(parts)


def set_environment() -> None:
    """Set what libraries read when they are imported; a user's own setting stays."""
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # else OpenMP's idle threads burn the cores that others wait for
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # a Mac's CPU does what its GPU lacks, torch warns of it
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds: a log wants few lines of progress


def is_config(word: str) -> bool:
    """Tell a config from the name of a recipe."""
    is_shipped = word in catalog.configs() and word not in catalog.recipes_by_name()
    return is_shipped or word.endswith((".yaml", ".yml"))


def command_meant(words: list[str]) -> str:
    """Return the whole command for words that leave the recipe out, or the config's option too."""
    words = [word for word in words if word != "--config"]
    config = next((word for word in words if is_config(word)), None)
    if config is None:
        return "tune run RECIPE --config CONFIG key=value ..."
    try:
        recipe = catalog.recipe_key(config) or "RECIPE"
    except ConfigError:
        recipe = "RECIPE"
    return shlex.join(["tune", "run", recipe, "--config", config, *(word for word in words if word != config)])


def is_own_script(name: str) -> bool:
    """Tell a user's script, given by its path, from a recipe of the catalogue."""
    return name.endswith(".py")


def check_config(name: str, recipe: catalog.Recipe, words: list[str]) -> None:
    """Raise `ConfigError` when no config is given, or one that says it is for another recipe.

    A user's own script takes any config.
    """
    from torchtune_lite.config.entry_point import read_words

    given, _ = read_words(words, f"tune run {name}")
    if not given:
        choose = " or ".join(recipe.configs) or "a YAML file"
        raise ConfigError(f"{name} needs a config: --config {choose}")
    key = catalog.recipe_key(given)
    if key and not is_own_script(name) and key not in (recipe.name, *recipe.aliases):
        raise ConfigError(f"config '{given}' is for {key}, not {name}; run 'tune run {key} --config {given}'")
