"""The owner of an error, by its innermost frame in the user's files or this package."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

from torchtune_lite import errors, tracebacks
from torchtune_lite.tracebacks import described, users_place, users_traceback

OWN = """\
import json, torch
from torchtune_lite import catalog

class Loss(torch.nn.Module):
    def forward(self, x):
        return x + undefined

def slip(): return undefined
def standard_library(): return json.loads("{")
def installed_library(): return torch.ones(2) @ torch.ones(3)
def wrong_call(): return catalog.folder()
def wrong_value(): return catalog.folder(3)
def through_torch(): return Loss()(1)
def called(function): return function()
def nested():
    try:
        slip()
    except NameError as error:
        raise KeyError("x") from error
"""


@pytest.fixture
def own(folder, monkeypatch):
    (folder / "own_code.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("own_code")
    sys.modules.pop("own_code")


def error_of(call):
    with pytest.raises(Exception) as raised:
        exec(compile("call()", errors.__file__, "exec"), {"call": call})  # as this package calls it
    return raised.value


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("slip", 8),
        ("standard_library", 9),
        ("installed_library", 10),
        ("wrong_call", 11),
        ("through_torch", 6),
        ("nested", 19),
    ],
)
def test_it_is_the_users_where_their_code_failed_or_what_it_called_outside_of_this_package(name, line, own):
    assert users_place(error_of(getattr(own, name))) == f"own_code.py:{line}"


def ours():
    exec(compile("1 / 0", errors.__file__, "exec"), {})


def test_it_is_ours_where_our_code_failed_though_theirs_called_it(own):
    for call in (own.wrong_value, lambda: own.called(ours), ours):
        assert users_place(error_of(call)) is None


@pytest.mark.parametrize("text", ["def f(:\n", "x = (\n", "  x = 1\n", "print 'x'\n"])
def test_of_a_file_that_is_no_python_the_line_is_said(text, folder):
    (folder / "own_syntax.py").write_text("\n" + text)
    with pytest.raises(SyntaxError) as raised:
        compile((folder / "own_syntax.py").read_text(), str(folder / "own_syntax.py"), "exec")
    assert users_place(raised.value) == "own_syntax.py:2"
    assert described(raised.value).startswith(("SyntaxError: ", "IndentationError: "))
    assert "own_syntax.py" not in described(raised.value)


def test_a_module_that_the_user_allows_is_theirs(folder, monkeypatch):
    installed = folder / "site-packages"
    installed.mkdir()
    (installed / "own_installed.py").write_text("def slip(): return undefined\n")
    monkeypatch.syspath_prepend(installed)
    module = importlib.import_module("own_installed")
    monkeypatch.setattr(tracebacks, "_is_named", None)
    assert "own_installed" not in (users_place(error_of(module.slip)) or "")
    tracebacks.count_as_users(lambda name: name == "own_installed")
    assert users_place(error_of(module.slip)) == "site-packages/own_installed.py:1"


def test_the_traceback_starts_in_the_users_file(own):
    text = users_traceback(error_of(own.through_torch))
    assert text.startswith("Traceback (most recent call last):\n") and text.endswith("'undefined' is not defined\n")


class Rows(torch.utils.data.Dataset):
    """A user's data set with a bug."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return undefined  # noqa: F821


def test_an_error_in_a_worker_process_is_placed_too():
    loader = torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(NameError) as raised:
        exec(compile("next(iter(loader))", errors.__file__, "exec"), {"loader": loader})
    line = inspect.getsourcelines(Rows.__getitem__)[1] + 1
    assert users_place(raised.value).endswith(f"test_tracebacks.py:{line}")
    assert described(raised.value) == "NameError: name 'undefined' is not defined"


RECIPE = """
import sys
from dataclasses import dataclass
from torchtune_lite import config


@dataclass
class Settings:
    seed: int = 0


@config.parse(Settings)
def recipe_main(cfg):
    return cfg.sed


if __name__ == "__main__":
    sys.exit(recipe_main())
"""


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (
            ["tune", "run", "my_recipe.py", "--config", "my.yaml"],
            "my_recipe.py:14: AttributeError: 'Settings' object has",
        ),
        (["tune", "run", "my_syntax.py", "--config", "my.yaml"], "my_syntax.py:1: SyntaxError: "),
        (["tune", "validate", "my.yaml", "--recipe", "my_syntax.py"], "my_syntax.py:1: SyntaxError: "),
        (["tune", "run", "my_syntax.py", "--help"], "my_syntax.py:1: SyntaxError: "),
        (["my_recipe.py", "--config", "my.yaml"], "my_recipe.py:14: AttributeError: "),
    ],
)
def test_a_recipe_of_the_users_own_fails_as_theirs(words, place, folder):
    (folder / "my_recipe.py").write_text(RECIPE)
    (folder / "my_syntax.py").write_text("def f(:\n")
    (folder / "my.yaml").write_text("seed: 1\n")
    words = ["-m", "torchtune_lite", *words[1:]] if words[0] == "tune" else words
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"tune: error: {place}")
    assert "report it" not in done.stderr and "torchtune_lite/" not in done.stderr
