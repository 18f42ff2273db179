"""The keys of a recipe, read from its source."""

import os
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest

from torchtune_lite import catalog, config
from torchtune_lite.cli import keys
from torchtune_lite.config.schema import hints

OWN = '''
"""A recipe."""
from dataclasses import dataclass
from pathlib import Path
from torchtune_lite import config

@dataclass
class Settings:
    """Its keys."""

    output_dir: str | Path  # a folder, and # more

    model: Any = config.component()
    loss: Any = config.component(default={"_component_": "my.Loss"})  # summed
    optimizer: Any = config.component("params", "more", default=None)
    steps: int = config.key(1, minimum=1)  # at most
    norm: float | None = config.key(default=None, above=0)
    dtype: str | None = config.key("bf16", choices=("fp32", "bf16"))
    kinds: str = config.key("a", choices=tuple(KINDS))
    tasks: list[str] | None = None
    parallel: Parallel = config.mapping(Parallel)  # inner keys
    more: dict = config.key(
        None,
        minimum=2,  # inside
    )  # and after


class Recipe:
    other: int = 1  # no key
'''
TABLE = """\
  output_dir  path, required  # a folder, and # more

  model       component, required
  loss        component = my.Loss  # summed
  optimizer   component = null, the recipe passes params, more
  steps       int = 1, at least 1  # at most
  norm        float or null = null, more than 0
  dtype       fp32 or bf16 or null = bf16
  kinds       str = a
  tasks       list of str or null = null
  parallel    mapping = {}  # inner keys
  more        mapping = null, at least 2  # inside and after"""


def test_each_key_has_its_kind_default_rule_and_comment(folder):
    (folder / "own.py").write_text("\ufeff" + OWN, encoding="utf-8")
    assert keys.shown(keys.read(folder / "own.py")) == TABLE


def test_a_script_without_settings_has_none_and_is_not_run(folder):
    (folder / "none.py").write_text("raise SystemExit\n")
    assert keys.read(folder / "none.py") == keys.names(folder / "none.py") == []
    assert keys.shown([]) == ""


BASES = """
from dataclasses import dataclass
from torchtune_lite import config, training
from torchtune_lite.training.settings import RecipeSettings as All

@dataclass(kw_only=True)
class Shared(All):
    steps: int = 1  # many

    size: int  # a number
"""
DERIVED = """
from dataclasses import dataclass
import bases as mine
import elsewhere

@dataclass
class Settings(mine.Shared):
    steps: int = 2  # a few
    own: bool = False  # mine
    more: int = 0  # too
"""


def test_keys_of_a_base_are_shown_where_it_declares_them_and_as_the_class_narrows_them(folder):
    (folder / "bases.py").write_text(BASES)
    (folder / "derived.py").write_text(DERIVED)
    found = keys.read(folder / "derived.py")
    names = ["model", "tokenizer", "checkpointer", "device", "dtype", "log_level", "steps", "size", "own", "more"]
    assert [key.name for key in found] == keys.names(folder / "derived.py") == names
    assert keys.shown(found[6:]) == (
        "  steps  int = 2  # a few\n\n  size   int, required  # a number\n\n"
        "  own    bool = False  # mine\n  more   int = 0  # too"
    )
    assert found[3].meaning.startswith("auto, cpu, cuda")


@pytest.mark.parametrize("base", ["elsewhere.Base", "Unknown", "Settings", "training.Unknown", "datasets.Dataset"])
def test_a_base_that_is_not_found_has_no_keys(folder, base):
    (folder / "mine.py").write_text(
        f"from torchtune_lite import training\nimport datasets\nclass Settings({base}):\n    own: int = 1\n"
    )
    assert keys.names(folder / "mine.py") == ["own"]


def test_a_class_that_leads_back_to_itself_has_no_keys(folder):
    (folder / "mine.py").write_text("from other import Settings\n")
    (folder / "other.py").write_text("from mine import Settings\n")
    assert keys.names(folder / "mine.py") == []


@pytest.mark.parametrize("recipe", catalog.recipes(), ids=lambda recipe: recipe.name)
def test_what_the_source_says_is_what_the_class_has(recipe):
    """Names, required keys, defaults and kinds read from the source are those of the imported class."""
    cls = config.settings_of(recipe.path)
    types = get_type_hints(cls)
    read = {key.name: key for key in keys.read(recipe.path)}
    assert list(read) == keys.names(recipe.path) == [field.name for field in fields(cls)]
    for field in fields(cls):
        key = read[field.name]
        assert (key.default is None) == (field.default is MISSING and field.default_factory is MISSING)
        if field.default is not MISSING:
            assert key.default == ("null" if field.default is None else str(field.default))
        kind = next((kind for kind in ("component", "mapping") if kind in field.metadata), None)
        kind = kind or hints.describe(types[field.name])
        if field.metadata.get("choices") is None and "DataFiles" not in key.kind:
            assert key.kind == kind.replace("Any", "any")
        assert key.meaning, f"{recipe.name}: {field.name} needs a comment that says what it means"


@pytest.mark.parametrize("name", ["lora_finetune_single_device", "mine.py"])
def test_help_lists_them_without_torch(name, folder):
    recipe = catalog.find_recipe("lora_finetune_single_device").path
    ours = "null: as dtype; fp32 keeps small updates"
    (folder / "mine.py").write_text(recipe.read_text().replace(ours, "my own words"))
    code = (
        "import sys; from torchtune_lite.cli.main import main\n"
        f"sys.argv = ['tune', 'run', {name!r}, '--help']\nmain()\n"
        "print(sorted({'torch', 'omegaconf', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stderr == "[]\n"
    assert "\n  batch_size                       int = 2, at least 1  # sequences in a micro-batch\n" in done.stdout
    words = "my own words" if name == "mine.py" else ours
    assert f"\n  adapter_dtype                    fp32 or bf16 or null = null  # {words}\n" in done.stdout
    assert ("\nConfigs: " in done.stdout) == (name != "mine.py")
