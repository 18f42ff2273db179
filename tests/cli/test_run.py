import gc
import os
import sys

import pytest

from torchtune_lite.cli.run import set_environment
from torchtune_lite.errors import ConfigError

FULL, CONFIG = "full_finetune_single_device", "tiny/1M_full"


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tune"])
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(tune, *words, **options):
    """What the recipe prints; it ends by `sys.exit(None)`."""
    with pytest.raises(SystemExit) as exit:
        tune("run", *words, **options)
    return exit.value.code


@pytest.mark.parametrize("recipe", [FULL, "full_finetune_distributed"])
@pytest.mark.parametrize("words", [("--config", CONFIG, "steps=3"), ("steps=3", f"--config={CONFIG}")])
def test_a_recipe_runs_as_a_script_with_its_config_and_overrides(recipe, words, tune, capsys):
    assert run(tune, recipe, *words) is None
    assert capsys.readouterr().out == "ran __main__ Settings(steps=3, name='n')\n"


def test_a_cloned_recipe_runs_by_its_path_with_any_config_and_sees_its_neighbours(tune, folder, shipped, capsys):
    (folder / "sub").mkdir()
    (folder / "sub/neighbour.py").write_text("print('here')\n")
    text = (shipped / f"recipes/{FULL}.py").read_text().replace("import sys\n", "import sys\nimport neighbour\n")
    (folder / "sub/mine.py").write_text(text)
    (folder / "my.yaml").write_text("recipe: something_else\nsteps: 5\n")
    assert run(tune, "sub/mine.py", "--config", "my.yaml", "name=a=b", "~steps") is None
    assert capsys.readouterr().out == "here\nran __main__ Settings(steps=1, name='a=b')\n"


def test_a_config_without_a_recipe_key_is_torchtunes_and_accepted(tune, folder, capsys):
    (folder / "theirs.yaml").write_text("steps: 4\ncompile: False\n")
    assert run(tune, FULL, "--config", "theirs.yaml") is None
    assert "steps=4" in capsys.readouterr().out


def test_help_is_the_recipes_docstring(tune):
    assert tune("run", FULL, "--help") == "Adds up numbers.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([FULL], f"{FULL} needs a config: --config {CONFIG}"),
        (["generate"], "generate needs a config: --config a YAML file"),
        ([FULL, "--config"], f"{FULL} needs a config"),
        ([FULL, "--config", "tiny/1M_ful"], f"there is no config 'tiny/1M_ful'; did you mean '{CONFIG}'"),
        (["generate", "--config", CONFIG], f"config '{CONFIG}' is for {FULL}, not generate; run 'tune run {FULL} "),
        ([FULL[:-1], "--config", CONFIG], f"there is no recipe '{FULL[:-1]}'; did you mean '{FULL}'"),
        (["no.py", "--config", CONFIG], "there is no recipe 'no.py'"),
        ([], "name the recipe first"),
        (["steps=3", FULL], "name the recipe first"),
        (["--nproc_per_node", "2", FULL, "--config", CONFIG], "'--nproc_per_node': a run uses one device"),
        (["--nnodes=1", FULL], "'--nnodes=1': a run uses one device"),
        ([FULL, "--nproc-per-node", "2"], "'--nproc-per-node': a run uses one device"),
    ],
)
def test_what_cannot_run_is_said_before_the_recipe_starts(words, message, tune):
    with pytest.raises(ConfigError) as error:
        tune("run", *words)
    assert str(error.value).startswith(message)


def test_the_recipes_own_errors_are_one_line_unless_debugging(tune, capsys):
    words = ("run", FULL, "--config", CONFIG, "stpes=3")
    assert run(tune, *words[1:]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "tune: error: override 'stpes=3': unknown key 'stpes'; did you mean 'steps'?\n")
    assert run(tune, *words[1:], debug=True) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_log_gets_few_lines_of_progress_and_a_users_own_settings_stay(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "TQDM_MININTERVAL", "PYTORCH_ENABLE_MPS_FALLBACK"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    set_environment()  # pytest's stderr is no terminal
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["TQDM_MININTERVAL"]) == ("2000", "10")
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("TQDM_MININTERVAL")
    set_environment()
    assert os.environ["GOMP_SPINCOUNT"] == "7" and "TQDM_MININTERVAL" not in os.environ


def test_the_end_of_python_looks_through_no_object_again(tune, monkeypatch):
    registered = []
    monkeypatch.setattr("atexit.register", registered.append)
    run(tune, FULL, "--config", CONFIG)
    assert gc.freeze in registered
