"""Every bad input of `error_cases` gets the answer in docs/errors.md: one line with its place, and its exit code.

After an intended change: TORCHTUNE_LITE_WRITE_ERRORS=1 pytest tests/test_error_messages.py, and read the diff.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.error_cases import CASES
from tests.error_files import RUN, Case, lay_out
from torchtune_lite.cli.main import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
ALL = [(section, case) for section, (_, cases) in CASES.items() for case in cases]
answers: dict[tuple[str, str], str] = {}


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run `tune` as in a process of its own; return its exit code."""
    sys.modules.pop("own", None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["tune", *shlex.split(command)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output_dir of a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    lay_out(Case("", ""), folder, folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert not call(f"{RUN} save_adapter_weights_only=True verify_saves=null", monkeypatch)
    return folder / "out"


def said(stderr: str) -> list[str]:
    """Return the lines without log, progress bar and tracebacks."""
    stderr = re.sub(r"^Traceback .*?(?=^tune: error: )|^  File .*?(?=^tune: error: )", "", stderr, flags=re.M | re.S)
    return [line for line in stderr.splitlines() if line and not re.match(r"\d\d:\d\d:\d\d |epoch \d", line)]


def shown(case: Case, stderr: str, folder: Path) -> str:
    """Write a case as on the page: the mistake, the command and its output without log lines."""
    stderr = re.sub(r"[0-9a-f]{12}(?=…)", "0123456789ab", stderr)  # of weights, which machines round differently
    code = f" (exit code {case.code})" if case.code else ""
    lines = [f"$ tune {case.command}", *said(stderr.replace(str(folder), "/work"))]
    return f"{case.given}{code}\n\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(("section", "case"), ALL, ids=lambda each: getattr(each, "given", each))
def test_a_bad_input_is_answered_as_the_page_shows(section, case, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lay_out(case, tmp_path, trained)
    code = call(case.command, monkeypatch)
    stderr = capsys.readouterr().err
    answers[section, case.given] = shown(case, stderr, tmp_path)
    lines = said(stderr)
    assert code == (case.code or CASES[section][0])
    assert lines[0].startswith("tune: error: ") and all(line.startswith("  ") for line in lines[1:])
    assert len(lines) == 1 or lines[0] == f"tune: error: {len(lines) - 1} problems:"
    assert not (tmp_path / "executed").exists()
    if "TORCHTUNE_LITE_WRITE_ERRORS" not in os.environ:
        assert f"\n{answers[section, case.given]}" in PAGE.read_text(encoding="utf-8")


def test_the_page_shows_these_inputs_and_no_others():
    text = PAGE.read_text(encoding="utf-8")
    head = text.partition("\n## ")[0]
    if "TORCHTUNE_LITE_WRITE_ERRORS" in os.environ:
        sections = [
            f"## {section}\n\nExit code {code}.\n\n" + "\n".join(answers[section, case.given] for case in cases)
            for section, (code, cases) in CASES.items()
        ]
        PAGE.write_text("\n".join([head.rstrip("\n") + "\n", *sections]), encoding="utf-8")
        pytest.fail("docs/errors.md is written anew: read its diff")
    assert re.findall(r"^## (.*)", text, re.M) == list(CASES)
    assert text.count("\n    $ tune ") == len(ALL)
    assert f"{len(ALL)} bad inputs" in head


def test_a_process_of_its_own_says_the_same(trained, tmp_path):
    [case] = [case for section, case in ALL if case.given == "Malformed JSON in a line"]
    lay_out(case, tmp_path, trained)
    words = [sys.executable, "-m", "torchtune_lite", *shlex.split(case.command)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert shown(case, done.stderr, tmp_path) in PAGE.read_text(encoding="utf-8")
