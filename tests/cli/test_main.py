import os
import subprocess
import sys

import pytest

from torchtune_lite import __version__
from torchtune_lite.cli import main


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["tune", *words])
    main.main()


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_every_verb(words, monkeypatch, capsys):
    run(monkeypatch, *words)
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in main.VERBS)


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_its_help(verb, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, verb, "--help")
    assert exit.value.code == 0
    assert f"usage: tune {verb}" in capsys.readouterr().out


def test_version(monkeypatch, capsys):
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"torchtune_lite {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vlaidate"], "there is no 'tune vlaidate'; did you mean 'validate'? ('tune --help' lists the verbs)"),
        (
            ["exact_match_eval", "x=1"],
            "there is no 'tune exact_match_eval'; did you mean 'tune run exact_match_eval x=1'",
        ),
        (["my.py"], "there is no 'tune my.py'; did you mean 'tune run my.py'? ("),
        (
            ["demo/base", "a=1"],
            "there is no 'tune demo/base'; did you mean 'tune run full_finetune_single_device --config",
        ),
        (["my.yaml"], "there is no 'tune my.yaml'; did you mean 'tune run RECIPE --config my.yaml'? ("),
        (["validate", "generate", "my.yaml"], "'generate' is a recipe, not a config ('tune ls' shows all)"),
        (
            ["validate", "my.yaml", "--recipe", "demo/base"],
            "'demo/base' is a config, not a recipe ('tune",
        ),
        (["cat"], "the following arguments are required: config ('tune cat --help' shows what it takes)"),
        (["ls", "--sort"], "unrecognized arguments: --sort ('tune ls --help' shows what it takes)"),
        (["cp", "x", "--typ", "recipe"], "unrecognized arguments: --typ"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, *words)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"tune: error: {message}")


def test_debug_shows_the_traceback(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, "--debug", "nonsense")
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize(
    ("words", "closed"),
    [
        (["--help"], "stdout"),
        (["ls"], "stdout"),
        (["ls", "--help"], "stdout"),
        (["cat", "demo/base"], "stdout"),
        (["env"], "stdout"),
        (["nonsense"], "stderr"),
    ],
)
def test_a_reader_that_goes_away_ends_a_command_without_a_word(words, closed, folder, unbuffered=""):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-m", "torchtune_lite", *words], env=env, **streams)
    os.close(writer)
    assert (done.returncode, done.stdout or b"", done.stderr or b"") == (141, b"", b"")


def test_so_it_does_where_nothing_is_buffered(folder):
    test_a_reader_that_goes_away_ends_a_command_without_a_word(["ls"], "stdout", folder, unbuffered="1")


@pytest.mark.parametrize("words", [["--help"], ["ls"], ["cp", "generate"]])
def test_no_library_is_loaded_for_what_runs_no_model(words, folder):
    code = (
        "import sys; from torchtune_lite.cli.main import main\n"
        f"sys.argv = ['tune', *{words}]\nmain()\n"
        "print(sorted({'torch', 'omegaconf', 'yaml', 'numpy', 'wandb'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_the_module_is_the_command(folder):
    done = subprocess.run([sys.executable, "-m", "torchtune_lite", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"torchtune_lite {__version__}\n")


@pytest.mark.parametrize("words", [["cat", "--config", "my.yaml", "--sort"], ["cat", "--sort", "--config=my.yaml"]])
def test_a_config_may_be_named_as_tune_run_has_it(words, folder, capsys):
    (folder / "my.yaml").write_text("b: 1\na: 2\n")
    main.start(*words)
    assert capsys.readouterr().out == "a: 2\nb: 1\n"
