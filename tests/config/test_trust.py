import sys

import pytest

from torchtune_lite.config import trust
from torchtune_lite.errors import ConfigError


@pytest.fixture(autouse=True)
def fresh(folder, monkeypatch):
    """Nothing is allowed but what always is."""
    monkeypatch.setattr(trust, "_patterns", [])
    monkeypatch.setattr(trust, "_beside", [])
    monkeypatch.delenv(trust.VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("torchtune_lite.data", True),
        ("torchtune_literal", False),
        ("torch.nn.modules.linear", True),
        ("torch.hub", False),
        ("torch", False),
        ("numpy", False),
        ("os", False),
        ("no_such_module", False),
        (None, False),
    ],
)
def test_which_modules_are_allowed(name, allowed):
    assert trust.module(name) is allowed


def test_options_are_taken_out_of_the_words_and_say_what_is_allowed():
    words = ["--config", "x.yaml", "--allow-component", "numpy.*", "a=b", "--allow-component=json.loads"]
    assert trust.take_allowed(words) == ["--config", "x.yaml", "a=b"]
    assert trust.module("numpy") and trust.module("numpy.linalg") and not trust.module("numpydoc")
    assert trust.names("json.loads") and trust.may_import("json.loads") and not trust.module("json")


def test_the_environment_allows_too(monkeypatch):
    monkeypatch.setenv(trust.VARIABLE, "numpy.*, json.loads")
    assert trust.module("numpy") and trust.names("json.loads")


@pytest.mark.parametrize("pattern", ["", "*", "numpy", "numpy.*.x", "num*.x", ".*", "--config"])
def test_a_pattern_that_says_too_much_or_nothing_is_refused(pattern):
    with pytest.raises(ConfigError, match="--allow-component .*expected a package such as 'pkg"):
        trust.take_allowed(["--allow-component", pattern])


def test_modules_in_the_working_directory_and_beside_the_recipe_are_the_users_own(folder, tmp_path_factory):
    beside = tmp_path_factory.mktemp("beside")
    (folder / "own_here.py").write_text("")
    (beside / "own_beside.py").write_text("")
    (folder / ".venv/site-packages").mkdir(parents=True)
    (folder / ".venv/site-packages/foreign.py").write_text("")
    paths = [str(folder), str(beside), str(folder / ".venv/site-packages")]
    sys.path.extend(paths)
    try:
        assert trust.may_import("own_here.x") and not trust.may_import("own_beside.x")
        trust.allow_beside(beside / "recipe.py")
        assert trust.folders() == [folder.resolve(), beside.resolve()]
        assert trust.may_import("own_beside.x") and not trust.may_import("foreign.x")
        assert not {"own_here", "own_beside"} & set(sys.modules)
    finally:
        for path in paths:
            sys.path.remove(path)
