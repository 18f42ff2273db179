"""Clone a recipe or a config, to edit it.

  tune cp llama2/7B_qlora_single_device my.yaml
  tune cp lora_finetune_single_device .

In a folder the copy keeps its name; a missing suffix is added. A config is copied with what it includes, whole.
"""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from torchtune_lite import catalog
from torchtune_lite.errors import ConfigError, did_you_mean

SUFFIXES = {"recipe": (".py",), "config": (".yaml", ".yml")}


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune cp`."""
    parser.add_argument("name", help="name of a recipe or config ('tune ls' shows all)")
    parser.add_argument("destination", nargs="?", default=".", help="file or folder (default: the working directory)")
    parser.add_argument("--type", choices=tuple(SUFFIXES), help="which one, if a recipe and a config share the name")
    parser.add_argument("--make-parents", action="store_true", help="make the folders that are missing")
    parser.add_argument("--as-is", action="store_true", help="leave 'include' unresolved: only the file's own keys")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="overwrite an existing file")
    existing.add_argument("-n", "--no-clobber", action="store_true", help="keep an existing file, without an error")


def main(args: Namespace) -> None:
    """Copy the file and print where it lies."""
    kind, source = find(args.name, args.type)
    target = destination(args.destination, args.name, SUFFIXES[kind])
    if target.exists() and args.no_clobber:
        print(f"{target} exists and is left as it is")
        return
    if target.exists() and not args.force:
        raise ConfigError(f"{target} exists; choose another name, or overwrite it with --force")
    if not target.parent.is_dir() and not args.make_parents:
        raise ConfigError(f"there is no folder {target.parent}; make it with --make-parents")
    content = source.read_bytes() if args.as_is or kind == "recipe" else whole(source, args.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from error
    print(f"Copied to {target}")


def whole(source: Path, name: str) -> bytes:
    """Return a config with what it includes."""
    from torchtune_lite.config.text.completion import complete

    return complete(source, name).encode()


def find(name: str, kind: str | None) -> tuple[str, Path]:
    """Return the kind and the file of what is called `name`; `kind` decides where a recipe and a config share it."""
    recipes = {known: recipe.path for known, recipe in catalog.recipes_by_name().items()}
    found = {"recipe": recipes, "config": catalog.configs()}
    if kind:
        found = {kind: found[kind]}
    kinds = [each for each, files in found.items() if name in files]
    if len(kinds) > 1:
        raise ConfigError(f"'{name}' is a recipe and a config; choose with --type recipe or --type config")
    if not kinds:
        known = [known for files in found.values() for known in files]
        raise ConfigError(
            f"there is no {kind or 'recipe or config'} '{name}'{did_you_mean(name, known)} ('tune ls' shows all)"
        )
    return kinds[0], found[kinds[0]][name]


def destination(given: str, name: str, suffixes: tuple[str, ...]) -> Path:
    """Return the file to write: inside a folder it keeps the name, and a missing suffix is added."""
    target = Path(given).expanduser()
    if target.is_dir() or given.endswith(("/", os.sep)):
        target = target / Path(name).name
    return target if target.suffix in suffixes else target.with_name(target.name + suffixes[0])
