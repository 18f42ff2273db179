"""The table of docs/reliability.md: the tests that show the response to each fault."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
Row = tuple[str, list[str]]  # a code, and the tests as pytest names them


def rows() -> list[Row]:
    """Read the table; the code of a P0 row keeps its asterisks."""
    lines = re.findall(r"^\| (\**[D-G]\d+\**) \|.*\| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [(code, [f"tests/{test}" for test in re.findall(r"`([^`]+)`", cell)]) for code, cell in lines]


def is_p0(code: str) -> bool:
    """Return whether a fault must be handled before a release."""
    return code.startswith("**")


def shown(table: Sequence[Row]) -> list[str]:
    """Run the tests and return the codes of the rows whose tests all passed, with all their parameters."""
    tests = sorted({test for _, names in table for test in names})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-q", "-p", "no:cacheprovider", f"--junit-xml={report}", "-o", "junit_family=xunit1", *tests]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=env, stdout=sys.stderr, check=False)
        passed = outcomes(report)
    return [code for code, names in table if all(is_shown(name, passed) for name in names)]


def outcomes(report: Path) -> dict[tuple[str, str], bool]:
    """Return for each test, by file and name, whether it passed with all its parameters."""
    passed: dict[tuple[str, str], bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        key = case.get("file", ""), case.get("name", "").partition("[")[0]
        good = not any(child.tag in ("failure", "error", "skipped") for child in case)
        passed[key] = passed.get(key, True) and good
    return passed


def is_shown(name: str, passed: dict[tuple[str, str], bool]) -> bool:
    path, _, test = name.partition("::")
    mine = [good for (file, other), good in passed.items() if file == path and test in ("", other)]
    return bool(mine) and all(mine)
