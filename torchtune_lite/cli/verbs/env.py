"""Show versions, devices and what is missing: what a bug report needs."""

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from torchtune_lite.redaction import redact
from torchtune_lite.utils.machine import describe_machine


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune env`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")


def main(args: Namespace) -> None:
    """Print a section of lines for each part of the report."""
    report = redact(describe_machine())
    if args.json:
        print(json.dumps(report))
        return
    for section, values in report.items():
        print(section)
        for name, value in values.items():
            print(f"  {name:<16} {written(value)}")


def written(value: Any) -> str:
    """Write a value in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_gib', '')} {_unit(name, each)}" for name, each in value.items())
    return "not installed" if value is None else str(value)


def _unit(name: str, value: Any) -> str:
    known = "unknown" if value is None else str(value)
    return f"{known} GiB" if name.endswith("_gib") and value is not None else known
