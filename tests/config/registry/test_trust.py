import os
import sys

import pytest

from torchtune_lite import catalog
from torchtune_lite.config.registry import trust
from torchtune_lite.errors import ConfigError


@pytest.fixture(autouse=True)
def fresh(folder, monkeypatch):
    """Only the components that are always allowed."""
    monkeypatch.delenv(trust.VARIABLE, raising=False)


@pytest.fixture
def write(monkeypatch):
    """Write an empty module into a folder, which joins the module search path for the rest of the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(folder, name):
        path = folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        return path

    return write


@pytest.mark.parametrize("name", ["torchtune_lite.data", "torch.optim", "numpy", "os", "no_such_module", None])
def test_no_library_is_trusted_as_a_whole(name):
    assert not trust.module(name) and not (name and trust.may_import(name))


def test_options_are_taken_out_of_the_words_and_say_what_is_allowed():
    words = ["--config", "x.yaml", "--allow-component", "numpy.*", "a=b", "--allow-component=json.loads"]
    patterns, left = trust.take_allowed(words)
    assert left == ["--config", "x.yaml", "a=b"]
    with trust.trusting(patterns, "recipe.py"):
        assert trust.module("numpy") and trust.module("numpy.linalg") and not trust.module("numpydoc")
        assert trust.names("json.loads") and not trust.names("json.dumps") and not trust.module("json")
    assert not trust.module("numpy")


def test_a_package_above_a_trusted_one_may_be_imported_and_is_not_trusted():
    with trust.trusting(["xml.etree.*"], "recipe.py"):
        assert trust.may_import("xml") and not trust.module("xml") and not trust.may_import("xml.dom")


def test_the_environment_allows_too(monkeypatch):
    monkeypatch.setenv(trust.VARIABLE, "numpy.*, json.loads")
    assert trust.module("numpy") and trust.names("json.loads")


def test_nothing_widens_what_is_trusted_while_a_command_runs(folder, tmp_path_factory, write, monkeypatch):
    """Neither the environment, nor another working directory, nor a second settlement."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere, "own_elsewhere")
    with trust.trusting([], folder / "recipe.py"):
        monkeypatch.setenv(trust.VARIABLE, "numpy.* json.loads")
        os.chdir(elsewhere)
        with pytest.raises(RuntimeError, match="has been settled"), trust.trusting(["numpy.*"], "recipe.py"):
            pass
        assert not trust.module("numpy") and not trust.names("json.loads") and not trust.module("own_elsewhere")
    assert trust.module("numpy") and trust.module("own_elsewhere")


@pytest.mark.parametrize("pattern", ["", "*", "numpy", "numpy.*.x", "num*.x", ".*", "--config"])
def test_a_pattern_that_says_too_much_or_nothing_is_refused(pattern, monkeypatch):
    message = "{} .*expected a package such as 'pkg"
    with pytest.raises(ConfigError, match=message.format(trust.OPTION)), trust.trusting([pattern], "recipe.py"):
        pass
    monkeypatch.setenv(trust.VARIABLE, pattern)
    if pattern:
        with pytest.raises(ConfigError, match=message.format(trust.VARIABLE)):
            trust.current()


def test_modules_in_the_working_directory_and_beside_the_recipe_are_the_users_own(folder, tmp_path_factory, write):
    beside = tmp_path_factory.mktemp("beside")
    write(folder, "own_here")
    write(beside, "own_beside")
    assert trust.may_import("own_here") and not trust.may_import("own_beside")
    with trust.trusting([], beside / "recipe.py"):
        assert trust.current().folders == (folder.resolve(), beside.resolve())
        assert trust.may_import("own_here") and trust.may_import("own_beside")
    assert not {"own_here", "own_beside"} & set(sys.modules)


def test_a_link_in_the_working_directory_makes_nothing_the_users_own(folder, tmp_path_factory, write):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "own_link.py").symlink_to(write(elsewhere, "foreign"))
    (folder / "own_folder").symlink_to(elsewhere)
    sys.path.append(str(folder))
    assert not trust.module("own_link") and not trust.module("own_folder.foreign")


def test_a_working_directory_that_is_reached_by_a_link_is_the_users_own(folder, tmp_path_factory, write, monkeypatch):
    write(folder, "own_here")
    link = tmp_path_factory.mktemp("link") / "work"
    link.symlink_to(folder)
    monkeypatch.chdir(link)
    assert trust.module("own_here")


@pytest.mark.parametrize(
    ("root", "name", "files"),
    [
        (".venv/lib/site-packages", "foreign", {}),
        ("site-packages", "foreign", {}),
        (".", "env.lib.foreign", {"env/pyvenv.cfg": ""}),
        (".", "env.foreign", {"env/conda-meta/history": ""}),
        (".", "foreign", {"foreign-1.0.dist-info/RECORD": "foreign.py,sha256=x,0\n"}),
        ("libs", "foreign.core", {"libs/foreign-1.0.dist-info/RECORD": "foreign/core.py,sha256=x,0\n"}),
    ],
)
def test_what_is_installed_below_the_working_directory_is_not_the_users_own(root, name, files, folder, write):
    write(folder / root, name)
    write(folder, "own_here")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    assert not trust.module(name) and trust.module("own_here")


def test_a_working_directory_among_installed_packages_makes_none_of_them_the_users_own(monkeypatch):
    import sentencepiece

    monkeypatch.chdir(os.path.dirname(os.path.dirname(sentencepiece.__file__)))
    assert not trust.module("sentencepiece")


def test_an_environment_whose_top_is_the_working_directory_leaves_the_users_modules_their_own(folder, write):
    write(folder, "own_here")
    (folder / "pyvenv.cfg").touch()
    assert trust.module("own_here")


@pytest.mark.parametrize("name", ["torchtune_lite.checkpoint.store.disk", "recipes.generate", "tests.error_files"])
def test_a_clone_of_this_library_as_the_working_directory_makes_none_of_it_the_users_own(name, monkeypatch):
    root = catalog.folder("recipes").parent
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    assert not trust.module(name)
    assert trust.is_own_file(root / "my_rows.py")
