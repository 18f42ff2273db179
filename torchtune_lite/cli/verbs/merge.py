"""Merge adapters, each with a weight, into their base: one model folder.

  tune merge runs/a/epoch_0/adapter runs/b/epoch_0/adapter=0.5 --out models/both

A weight of 1, the default, adds the whole of an adapter's change; several are added up.
"""

import re
from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path

from torchtune_lite.errors import ConfigError


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune merge`."""
    parser.add_argument("adapters", nargs="+", metavar="FOLDER[=WEIGHT]", help="an adapter, in PEFT's layout")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where to write, which must not exist"
    )
    parser.add_argument("--base", metavar="FOLDER", help="the base, where the adapters do not say where it is")


def main(args: Namespace) -> None:
    """Write the folder and print where it lies, and how far rounding has taken it from the sum."""
    out = args.out.expanduser()
    if out.exists():
        raise ConfigError(f"{out} exists and is not overwritten; name another folder with --out, or move it away")
    adapters = [weighted(each) for each in args.adapters]
    # by its name: it stands above this package, and imports torch
    found = import_module("torchtune_lite.export").merge(adapters, out, args.base)
    print(f"{out} has {' + '.join(f'{weight:g} · {folder}' for folder, weight in adapters)}\n{found}")


def weighted(text: str) -> tuple[Path, float]:
    """Read `FOLDER` or `FOLDER=WEIGHT`; ConfigError where the weight is not a number."""
    found = re.fullmatch(r"(.+?)=([^=/]*)", text)
    if not found:
        return Path(text).expanduser(), 1.0
    try:
        return Path(found[1]).expanduser(), float(found[2])
    except ValueError:
        raise ConfigError(f"{text}: {found[2]!r} is not a number; write FOLDER=WEIGHT, such as adapter=0.5") from None
