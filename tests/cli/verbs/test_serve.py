import pytest

from torchtune_lite.cli import asking
from torchtune_lite.cli.main import start
from torchtune_lite.errors import ConfigError


@pytest.fixture
def given(monkeypatch, folder):
    """Gives the overrides that the recipe would get, those of options first."""

    def call(*words):
        found = []
        monkeypatch.setattr(
            asking,
            "main",
            lambda recipe, config, args, changes: found.extend([*asking.options(recipe, args), *changes]),
        )
        start("serve", *words)
        return found

    return call


def test_the_model_is_called_as_its_folder_unless_it_is_named(given, folder):
    assert given("runs/x", "port=8080") == ['name="x"', "port=8080"]
    assert given("runs/x/") == given(str(folder / "runs/x")) == ['name="x"']
    assert given(".") == [f'name="{folder.name}"']
    assert given("runs/x", "--name", "mine", "--port", "1") == ["port=1", 'name="mine"']
    assert given("runs/x", "name=mine")[-1] == "name=mine"  # of two, the last counts


def test_what_is_not_a_model_is_refused(folder):
    with pytest.raises(ConfigError, match="the following arguments are required: FOLDER"):
        start("serve")
