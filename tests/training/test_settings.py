"""The keys that recipes share."""

from dataclasses import fields

import pytest

from torchtune_lite import catalog, config
from torchtune_lite.cli import keys
from torchtune_lite.training import RecipeSettings, TrainingSettings


@pytest.mark.parametrize("recipe", catalog.recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_declares_no_shared_key_again_but_to_narrow_its_model(recipe):
    cls = config.settings_of(recipe.path)
    shared = TrainingSettings if issubclass(cls, TrainingSettings) else RecipeSettings
    assert issubclass(cls, RecipeSettings) or "model" not in {field.name for field in fields(cls)}
    again = set(cls.__annotations__) & {field.name for field in fields(shared)}
    assert again <= {"model"}


@pytest.mark.parametrize("recipe", catalog.recipes(), ids=lambda recipe: recipe.name)
def test_a_key_that_two_recipes_have_means_the_same_or_is_not_shared(recipe):
    """A key of one recipe that a shared class declares, too, would be declared twice."""
    own = {key.name for key in keys.read(recipe.path)} - {field.name for field in fields(RecipeSettings)}
    assert own, "a recipe has keys of its own"


def test_a_recipe_of_ones_own_may_require_a_key_and_give_a_shared_one_another_default(folder):
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom torchtune_lite import config, training\n\n\n@dataclass(kw_only=True)\n"
        "class Settings(training.RecipeSettings):\n    needed: int\n    device: str = 'cpu'\n"
    )
    cls = config.settings_of(folder / "mine.py")
    parts = {"model": None, "tokenizer": None, "checkpointer": None}
    assert cls(needed=3, **parts).device == "cpu"
    with pytest.raises(TypeError, match="needed"):
        cls(**parts)
