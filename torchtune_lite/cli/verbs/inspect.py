"""Show what a config will train on, before a step runs: lengths, labels, what is cut, and a few samples.

  tune inspect my.yaml dataset.on_long_sample=skip --rows 5

Reads the data and the tokenizer, but no weights. The tokens in the loss are green, or stand in ⟦…⟧ where the output
is not a terminal.
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from itertools import groupby
from typing import Any

from torchtune_lite.cli.verbs import validate
from torchtune_lite.utils import counted

GREEN, DIM, OFF = "\x1b[32m", "\x1b[2m", "\x1b[0m"
BAR = 40  # characters of the longest


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune inspect`."""
    validate.configure(parser)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="samples to write out (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")


def main(args: Namespace) -> None:
    """Print the report."""
    with validate.settings(args) as cfg:
        # by its name: what reads data stands above this package, and imports torch
        report = import_module("torchtune_lite.datasets").inspect_data(cfg, max(args.rows, 0))
    sys.stdout.reconfigure(errors="replace")
    if args.json:
        print(json.dumps(report, ensure_ascii=False))
        return
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for key, data in report.items():
        if isinstance(data, dict):
            print(f"{key}\n{render(data, report['max_seq_len'], coloured)}")
    print(f"{counted(report['steps_per_epoch'], 'optimizer step')} an epoch")


def render(data: dict[str, Any], max_seq_len: int | None, coloured: bool) -> str:
    """Write one data set's part of the report."""
    lengths = data["lengths"]
    lines = [
        f"  {counted(data['samples'], 'sample')} of {counted(data['rows'], 'row')}",
        f"  {counted(data['tokens'], 'token')}, {data['label_tokens'] / data['tokens']:.1%} of them in the loss",
        f"  {_count(data['cut'])} cut at max_seq_len={max_seq_len}, {_count(data['without_label'])} left out without a "
        f"label, {_count(data['bad'])} left out as bad",
        f"  length in tokens: {lengths['min']} to {lengths['max']}, median {lengths['median']}, mean {lengths['mean']}",
    ]
    most = max(count for *_, count in data["histogram"])
    classes = [f"{first}–{last}" if first < last else f"{first}" for first, last, _ in data["histogram"]]
    for each, (*_, count) in zip(classes, data["histogram"], strict=True):
        lines.append(f"  {each:>{max(map(len, classes))}} {'█' * -(-BAR * count // most)} {count:,}")
    for sample in data["shown"]:
        lines.append(f"\n  {sample['where']}, {counted(sample['tokens'], 'token')}")
        lines += [f"    {line}" for line in written(sample["pieces"], coloured).split("\n")]
    return "\n".join(lines) + "\n"


def _count(number: int | None) -> str:
    return "not counted:" if number is None else f"{number:,}"


def written(pieces: list[dict[str, Any]], coloured: bool) -> str:
    """Write a sample out, with escapes for characters that are not printable, which could steer a terminal."""
    text = ""
    for label, run in groupby(pieces, key=lambda piece: piece["label"]):
        parts = []
        for piece in run:
            plain = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in piece["text"])
            style = GREEN * label + DIM * piece["special"]
            parts.append(f"{style}{plain}{OFF}" if coloured and style else plain)
        text += "".join(parts) if coloured or not label else f"⟦{''.join(parts)}⟧"
    return text
