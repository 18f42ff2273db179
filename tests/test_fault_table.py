"""The table of docs/reliability.md names tests that exist, and a row counts only when they pass."""

import ast
from pathlib import Path

from tests.fault_table import ROOT, is_p0, is_shown, outcomes, rows


def test_every_row_names_tests_that_exist():
    assert len([code for code, _ in rows() if is_p0(code)]) == 28
    for code, tests in rows():
        assert tests, code
        for test in tests:
            path, _, name = test.partition("::")
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert (name or path.rpartition("/")[2].removesuffix(".py")) in [*names, Path(path).stem], f"{code}: {test}"


def test_a_row_counts_only_if_all_its_tests_pass_with_all_parameters(tmp_path: Path):
    case = '<testcase file="t.py" name="{}">{}</testcase>'
    cases = ["good", "half[0]", "bad", "skipped"], ["", "", "<failure/>", "<skipped/>"]
    text = "".join(map(case.format, *cases)) + case.format("half[1]", "<error/>")
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    passed = outcomes(tmp_path / "report.xml")
    shown = [name for name in ("good", "half", "bad", "skipped", "absent") if is_shown(f"t.py::{name}", passed)]
    assert shown == ["good"] and not is_shown("t.py", passed) and not is_shown("other.py", passed)
