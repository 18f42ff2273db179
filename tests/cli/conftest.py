"""A small catalogue of recipes and configs, and `tune` in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from torchtune_lite import catalog
from torchtune_lite.cli import asking
from torchtune_lite.cli.main import start
from torchtune_lite.cli.verbs import run as run_verb

TRAIN = '''"""Adds up numbers."""

import sys
from dataclasses import dataclass

from torchtune_lite import config


@dataclass
class Settings:
    steps: int = config.key(1, minimum=1)
    name: str | None = None


@config.parse(Settings)
def recipe_main(cfg):
    print("ran", __name__, cfg)


if __name__ == "__main__":
    sys.exit(recipe_main())
'''
FILES = {
    "recipes/full_finetune_single_device.py": TRAIN,
    "recipes/generate.py": '"""Talks."""\n',
    "recipes/both.py": "",
    "configs/both.yaml": "recipe: both\n",
    "configs/tiny/1M_full.yaml": "# three\n# header\n# lines\nrecipe: full_finetune_single_device\nsteps: 2\nname: n\n",
}


@pytest.fixture
def shipped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path_factory.mktemp("shipped")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(catalog, "folder", lambda name: root / name)
    return root


@pytest.fixture
def tune(shipped: Path, folder: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a verb in an empty working directory and return its output."""

    def run(*words: str, debug: bool = False) -> str:
        start(*words, debug=debug)
        return capsys.readouterr().out

    return run


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., list[str]]:
    """Gives the words of `tune run` that a verb ends in."""
    seen = []
    monkeypatch.setattr(run_verb, "main", lambda args: seen.append((args.words, args.debug)))
    monkeypatch.setattr(run_verb, "set_environment", lambda: None)
    monkeypatch.setattr(asking, "make_compiler_lazy", lambda: None)

    def of(verb: str, *given: object, debug: bool = False) -> list[str]:
        start(verb, *map(str, given), debug=debug)
        [(found, debugged)] = seen
        seen.clear()
        assert debugged == debug
        return found

    return of
