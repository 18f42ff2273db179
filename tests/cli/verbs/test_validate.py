import sys

import pytest

from torchtune_lite.errors import ConfigError


def test_a_config_is_checked_against_the_recipe_it_names(tune):
    assert tune("validate", "tiny/1M_full", "steps=3") == "Config is well-formed.\n"


def test_options_may_stand_among_the_overrides(tune):
    words = ("steps=3", "--recipe", "full_finetune_single_device", "name=x")
    assert tune("validate", "tiny/1M_full", *words) == "Config is well-formed.\n"


def test_a_config_without_a_recipe_key_needs_one(tune, folder):
    (folder / "theirs.yaml").write_text("steps: 4\n")
    assert tune("validate", "theirs.yaml", "--recipe", "full_finetune_distributed") == "Config is well-formed.\n"
    with pytest.raises(ConfigError, match="theirs.yaml does not name its recipe; add --recipe RECIPE"):
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


def test_a_script_that_the_config_names_must_lie_in_the_working_directory(tune, folder, shipped, tmp_path_factory):
    script = tmp_path_factory.mktemp("elsewhere") / "mine.py"
    script.write_text("raise SystemExit('imported')\n")
    (folder / "my.yaml").write_text(f"recipe: {script}\n")
    with pytest.raises(ConfigError, match=f"outside the working directory; add --recipe {script} to trust it"):
        tune("validate", "my.yaml")
    (folder / "mine.py").write_text((shipped / "recipes/full_finetune_single_device.py").read_text())
    (folder / "my.yaml").write_text("recipe: mine.py\nsteps: 4\n")
    assert tune("validate", "my.yaml") == "Config is well-formed.\n"


def test_a_module_that_is_not_allowed_is_not_imported(tune, folder, monkeypatch, tmp_path_factory):
    installed = tmp_path_factory.mktemp("installed")
    (installed / "foreign_trap.py").write_text("def thing(): ...\n")
    monkeypatch.syspath_prepend(installed)
    (folder / "my.yaml").write_text("recipe: full_finetune_single_device\nname: {_component_: foreign_trap.thing}\n")
    with pytest.raises(ConfigError, match="'foreign_trap.thing' is not an allowed component"):
        tune("validate", "my.yaml")
    assert "foreign_trap" not in sys.modules
    assert tune("validate", "my.yaml", "--allow-component", "foreign_trap.*") == "Config is well-formed.\n"


def test_a_recipe_that_does_not_exist(tune, folder):
    (folder / "my.yaml").write_text("recipe: full_finetune_singel_device\n")
    with pytest.raises(ConfigError, match="there is no recipe 'full_finetune_singel_device'; did you mean"):
        tune("validate", "my.yaml")
