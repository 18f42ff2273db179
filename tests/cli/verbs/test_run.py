import gc
import os
import sys

import pytest

from torchtune_lite.cli.verbs.run import set_environment
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


def test_help_is_the_recipes_docstring_its_keys_and_its_configs(tune):
    docstring, head, table, configs = tune("run", FULL, "--help").split("\n\n")
    assert (docstring, configs) == ("Adds up numbers.", f"Configs: {CONFIG}\n")
    assert (
        head.startswith("Keys of its config") and table == "  steps  int = 1, at least 1\n  name   str or null = null"
    )
    assert tune("run", "generate", "--help") == "Talks.\n"


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
        ([], "name the recipe first: tune run RECIPE --config CONFIG key=value ..."),
        ([CONFIG, "steps=3"], f"name the recipe first: tune run {FULL} --config {CONFIG} steps=3 ("),
        (["--config", CONFIG], f"name the recipe first: tune run {FULL} --config {CONFIG} ("),
        (["no.yaml"], "name the recipe first: tune run RECIPE --config no.yaml ("),
        ([FULL, CONFIG, "steps=3"], f"name the config with --config: tune run {FULL} --config {CONFIG} steps=3"),
        ([FULL, "name=a b", "no.yml"], f"name the config with --config: tune run {FULL} --config no.yml 'name=a b'"),
        ([FULL, "-c", CONFIG], f"name the config with --config: tune run {FULL} --config {CONFIG}"),
        ([FULL, "--cfg=x.yaml", "a=1"], f"name the config with --config: tune run {FULL} --config x.yaml a=1"),
        ([FULL, "config=x.yaml"], f"name the config with --config: tune run {FULL} --config x.yaml"),
        ([FULL, "--config", CONFIG, "--config=x.yaml"], f"--config is given 2 times ({CONFIG}, x.yaml); name one"),
        (["steps=3", FULL], "name the recipe first"),
        (["--nproc_per_node", "2", FULL], f"{FULL} needs a config"),
        (["--nnodes=1", FULL, "--config", CONFIG], f"{FULL} runs in one process"),  # which has no key `parallel`
        (["--nproc_per_node", "2", "no_such", "--config", CONFIG], "there is no recipe 'no_such'"),
        ([FULL, "--nproc-per-node", "2"], "'--nproc-per-node' is for torchrun: put it before the recipe"),
    ],
)
def test_what_cannot_run_is_said_before_the_recipe_starts(words, message, tune):
    with pytest.raises(ConfigError) as error:
        tune("run", *words)
    assert str(error.value).startswith(message)


def test_a_config_in_an_override_is_not_the_runs(tune, capsys):
    assert run(tune, FULL, "--config", CONFIG, "name=other.yaml") is None
    assert "name='other.yaml'" in capsys.readouterr().out


THEIRS = """import torchtune
from torchtune import config

@config.parse
def recipe_main(cfg):
    print(cfg)
"""


@pytest.mark.parametrize("verb", ["run", "validate"])
def test_a_script_of_torchtunes_is_answered_with_how_to_port_it_before_it_is_imported(verb, tune, folder):
    (folder / "theirs.py").write_text(THEIRS)
    (folder / "my.yaml").write_text("steps: 1\n")
    words = (
        ["run", "theirs.py", "--config", "my.yaml"]
        if verb == "run"
        else ["validate", "my.yaml", "--recipe", "theirs.py"]
    )
    with pytest.raises(ConfigError) as error:
        tune(*words)
    assert "theirs.py:4: @config.parse needs the class of the recipe's keys, @config.parse(Settings); a" in str(
        error.value
    )
    assert "tune cp" in str(error.value) and "docs/coming_from_torchtune.md" in str(error.value)


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


def test_arguments_of_torchrun_start_processes(tune, monkeypatch):
    from torchtune_lite import launcher

    started = []
    monkeypatch.setattr("torchtune_lite.cli.keys.names", lambda recipe: ["steps", "parallel"])
    monkeypatch.setattr(launcher, "launch", lambda arguments, command: started.append((arguments, command)))
    tune("run", "--nproc_per_node", "2", FULL, "--config", CONFIG, "seed=1")
    [(arguments, command)] = started
    assert arguments.nproc_per_node == "2"
    assert command == ["-m", "torchtune_lite", "run", FULL, "--config", CONFIG, "seed=1"]
