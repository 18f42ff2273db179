"""`~` is the home folder in every key and argument that is a path, and in no other text."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from torchtune_lite import catalog, config, data, datasets, models, training
from torchtune_lite.config.schema import paths, settings
from torchtune_lite.config.text import includes
from torchtune_lite.config.text.document import Document
from torchtune_lite.errors import ConfigError

FILES = str | Path | Sequence[str | Path] | Mapping[str, str | Path] | None


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize("hint", [Path, str | Path, bool | str | Path, FILES, list[Path]])
def test_a_path_starts_at_home(hint, home):
    assert paths.expanded("~/runs/a", hint) == f"{home}/runs/a"
    assert paths.expanded("~", hint) == home


@pytest.mark.parametrize("value", ["a/~/b", "a~", "./~/a", "", None, True, 3])
def test_any_other_value_stays(value):
    assert paths.expanded(value, FILES) == value


@pytest.mark.parametrize("hint", [str, str | None, inspect.Parameter.empty, "a forward reference", list[str]])
def test_a_text_that_is_no_path_stays(hint):
    assert paths.expanded("~/a smile", hint) == "~/a smile"


def test_lists_and_mappings_of_paths_but_no_component_in_them(home):
    assert paths.expanded(["~/a", "b"], FILES) == [f"{home}/a", "b"]
    assert paths.expanded({"train": ["~/a"]}, FILES) == {"train": [f"{home}/a"]}
    nested = {"_component_": "x.y", "text": "~/a"}
    assert paths.expanded(nested, FILES) == nested


def test_a_user_who_does_not_exist_is_an_error_and_no_folder():
    with pytest.raises(ConfigError, match=r"^'~nosuchuser/a': there is no user 'nosuchuser'; write './~nosuch"):
        paths.expanded("~nosuchuser/a", Path)


NAMES = re.compile(r"(.*_)?(path|dir|files?|folder|source|checkpoint)|filename")
NO_PATHS = {"checkpoint_files"}  # names within checkpoint_dir
BUILDERS = [
    (f"{module.__name__}.{name}", each)
    for module in (data, datasets, models.llama2, training, training)
    for name, each in vars(module).items()
    if re.fullmatch(r"\w*([Tt]okenizer|_dataset|Logger|Checkpointer|[Pp]rofiler)", name) and callable(each)
]


@pytest.mark.parametrize(("name", "builder"), BUILDERS, ids=[name for name, _ in BUILDERS])
def test_each_argument_that_is_called_like_a_path_is_annotated_as_one(name, builder):
    for argument in inspect.signature(builder, eval_str=True).parameters.values():
        if NAMES.fullmatch(argument.name) and argument.name not in NO_PATHS:
            assert paths.holds_path(argument.annotation), f"{name}({argument.name}: {argument.annotation})"


@pytest.mark.parametrize("recipe", catalog.recipes(), ids=lambda recipe: recipe.name)
def test_each_key_of_a_recipe_that_is_called_like_a_path_starts_at_home(recipe, home):
    cls = config.settings_of(recipe.path)
    named = [name for name in settings.names(cls) if NAMES.fullmatch(name)]
    _, problems = settings.build(cls, Document("my.yaml", dict.fromkeys(named, "~/a"), {}))
    assert not any(f"'{name}':" in line for name in named for line in problems)
    values = includes.read(catalog.find_config(recipe.configs[-1]), recipe.configs[-1]).values
    open_keys = [f"{name}=x" for name, value in values.items() if value == "???" and name not in named]
    loaded = config.load(recipe.configs[-1], [*open_keys, *(f"{name}=~/a" for name in named)], cls)
    assert {name: getattr(loaded, name) for name in named} == dict.fromkeys(named, f"{home}/a")


def test_a_component_gets_expanded_paths_also_by_default_and_nested(folder, home):
    (folder / "own_paths.py").write_text(
        "from pathlib import Path\n"
        "def box(place: Path, text: str, inner=None, log_dir: str | Path = 'x'): return place, text, inner, log_dir\n"
    )
    inner = {"_component_": "own_paths.box", "place": "~/in", "text": "~"}
    built = config.instantiate(inner | {"place": "~/out", "inner": inner}, defaults={"log_dir": "~/logs"})
    assert built == (f"{home}/out", "~", (f"{home}/in", "~", None, "x"), f"{home}/logs")
    cls = config.settings_of(catalog.find_recipe("generate").path)
    words = ["checkpointer.checkpoint_dir=~nosuchuser/model"]
    with pytest.raises(ConfigError, match=r"cannot take 'checkpoint_dir': '~nosuchuser/model': there is no user"):
        config.load("generation", words, cls)
