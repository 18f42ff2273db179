import pytest

from torchtune_lite.errors import ConfigError


def test_a_config_is_checked_against_the_recipe_it_names(tune):
    assert tune("validate", "tiny/1M_full", "steps=3") == "Config is well-formed.\n"


def test_a_config_without_a_recipe_key_needs_one(tune, folder):
    (folder / "theirs.yaml").write_text("steps: 4\n")
    assert tune("validate", "theirs.yaml", "--recipe", "full_finetune_distributed") == "Config is well-formed.\n"
    with pytest.raises(ConfigError, match="theirs.yaml does not say whose it is; add --recipe RECIPE"):
        tune("validate", "theirs.yaml")


def test_all_problems_are_listed_and_nothing_runs(tune, folder):
    (folder / "my.yaml").write_text("recipe: full_finetune_single_device\nsteps: 0\nnmae: x\n")
    with pytest.raises(ConfigError) as error:
        tune("validate", "my.yaml", "lr=1")
    assert str(error.value).splitlines() == [
        "3 problems:",
        "  my.yaml:3: unknown key 'nmae'; did you mean 'name'?",
        "  override 'lr=1': unknown key 'lr'",
        "  my.yaml:2: 'steps': expected at least 1, got 0",
    ]


def test_a_recipe_that_does_not_exist(tune, folder):
    (folder / "my.yaml").write_text("recipe: full_finetune_singel_device\n")
    with pytest.raises(ConfigError, match="there is no recipe 'full_finetune_singel_device'; did you mean"):
        tune("validate", "my.yaml")
