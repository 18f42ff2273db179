"""Every benchmark can still be started: its imports from the library exist."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_finds_what_it_imports(script, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    for name in ("OMP_NUM_THREADS", "MPLBACKEND"):  # which one of them sets
        monkeypatch.setenv(name, "1" if name.startswith("OMP") else "agg")
    assert callable(runpy.run_path(str(script), run_name=script.stem)["main"])
