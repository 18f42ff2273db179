import sys
from dataclasses import dataclass
from typing import Any

import pytest

from torchtune_lite import config
from torchtune_lite.errors import ConfigError


@dataclass
class Settings:
    output_dir: str
    optimizer: Any = config.component("params")
    epochs: int = config.key(1, minimum=1)


@pytest.fixture(autouse=True)
def yaml(folder):
    (folder / "my.yaml").write_text(
        "recipe: some_recipe\noutput_dir: x\noptimizer:\n  _component_: torch.optim.AdamW\n  lr: 1e-3\ncompile: False\n"
    )


@config.parse(Settings)
def recipe_main(cfg):
    if cfg.epochs == 13:
        raise ConfigError("no luck")
    return cfg


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
    return recipe_main()


@pytest.mark.parametrize("words", [["--config", "my.yaml", "epochs=2"], ["epochs=2", "--debug", "--config=my.yaml"]])
def test_the_command_line_becomes_settings(words, monkeypatch):
    assert config.to_dict(run(monkeypatch, *words)) == {
        "output_dir": "x",
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "epochs": 2,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a config with --config"),
        (["--config"], "name a config with --config"),
        (["my.yaml", "epochs=2"], "name the config with --config: --config my.yaml epochs=2"),
        (["--config", "no.yaml"], "there is no config 'no.yaml'"),
        (["--config", "my.yaml", "epochs=13"], "no luck"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, *words)
    assert exit.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert line.startswith(f"tune: error: {message}")


def test_the_form_of_torchtunes_scripts_is_one_line_that_says_how_to_port_them(capsys):
    with pytest.raises(SystemExit) as exit:

        @config.parse
        def recipe_main(cfg): ...

    assert exit.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tune: error: {__file__}:") and "needs the class of the recipe's keys" in line


def test_debug_shows_the_traceback(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--debug", "--config", "no.yaml")
    assert capsys.readouterr().err.startswith("Traceback")


def test_all_problems_come_at_once(folder):
    words = ["optimizer.lrr=1", "epoch=3", "epochs=0", "--lr", "~outputdir", "output_dir=${x}", "compile=true"]
    with pytest.raises(ConfigError) as error:
        config.load("my.yaml", words, Settings)
    first, *problems = str(error.value).splitlines()
    assert first == "7 problems:"
    words = ["--lr", "~outputdir", "output_dir", "compile", "epoch=3", "optimizer.lrr", "epochs=0"]
    for word, problem in zip(words, problems, strict=True):
        assert f"override '{word}" in problem


def test_a_key_that_something_refers_to_is_the_users_own(folder):
    words = ["root=runs", "output_dir=${root}/${run.name}", "run={name: a}"]
    assert config.load("my.yaml", words, Settings).output_dir == "runs/a"
    with pytest.raises(ConfigError, match="^override 'root=runs': unknown key 'root'$"):
        config.load("my.yaml", words[:1], Settings)


def test_settings_are_read_from_a_script_without_running_it(folder):
    (folder / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Settings:\n    seed: int | None = None\n"
        "if __name__ == '__main__':\n    raise SystemExit(1)\n"
    )
    (folder / "small.yaml").write_text("seed: 3\n")
    assert config.load("small.yaml", [], config.settings_of(folder / "mine.py")).seed == 3
    (folder / "other.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no class Settings"):
        config.settings_of(folder / "other.py")


def test_the_command_line_trusts_a_package_and_the_yaml_cannot(monkeypatch, folder, capsys):
    (folder / "theirs.yaml").write_text("output_dir: x\noptimizer: {_component_: json.JSONDecoder}\n")
    words = ["--config", "theirs.yaml"]
    for more in ([], ["allow_component=json.JSONDecoder"]):
        with pytest.raises(SystemExit) as exit:
            run(monkeypatch, *words, *more)
        assert exit.value.code == 2
        assert "'json.JSONDecoder' is not an allowed component" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--allow-component", "json.JSONDecoder")
    assert "(json.JSONDecoder) has no argument 'params', which the recipe passes" in capsys.readouterr().err


NEEDS = """\
where: ???  # the folder to write to
output_dir: ${where}/a
optimizer: {_component_: torch.optim.AdamW, foreach: null, lr: "${rate}"}
rate: 0.1
"""


def test_a_key_without_a_value_is_asked_for_once_with_the_comment_beside_it(folder):
    (folder / "base.yaml").write_text(NEEDS)
    (folder / "mine.yaml").write_text("include: base.yaml\n")
    with pytest.raises(ConfigError) as error:
        config.load("mine.yaml", [], Settings)
    assert str(error.value) == "base.yaml:1: 'where' has no value yet; set where=... (the folder to write to)"
    assert config.load("mine.yaml", ["where=/b"], Settings).output_dir == "/b/a"


def test_a_key_that_nothing_refers_to_any_more_is_not_asked_for(folder):
    (folder / "base.yaml").write_text(NEEDS)
    (folder / "mine.yaml").write_text("include: base.yaml\noptimizer: {_component_: torch.optim.SGD, lr: 1}\n")
    cfg = config.load("mine.yaml", ["output_dir=/c"], Settings)
    assert config.to_dict(cfg) == {
        "output_dir": "/c",
        "optimizer": {"_component_": "torch.optim.SGD", "lr": 1},
        "epochs": 1,
    }


def test_the_config_that_is_saved_is_whole(folder):
    (folder / "base.yaml").write_text(NEEDS)
    (folder / "mine.yaml").write_text("include: base.yaml\nepochs: 3\n")
    saved = config.save(config.load("mine.yaml", ["where=/b"], Settings), folder / "run")
    again = config.load(saved, [], Settings)
    assert (again.output_dir, again.epochs, again.optimizer["lr"]) == ("/b/a", 3, 0.1)
    assert "include" not in saved.read_text()


def test_a_problem_is_placed_in_the_file_where_its_key_stands(folder):
    (folder / "base.yaml").write_text("optimizer:\n  _component_: torch.optim.AdamW\n  leraning_rate: 1\nepochs: 0\n")
    (folder / "mine.yaml").write_text("include: base.yaml\n\noutput_dri: x\noutput_dir: x\noptimizer:\n  lr: a\n")
    with pytest.raises(ConfigError) as error:
        config.load("mine.yaml", [], Settings)
    places = [line.strip().partition(": ")[0] for line in str(error.value).splitlines()[1:]]
    assert sorted(places) == ["base.yaml:3", "base.yaml:4", "mine.yaml:3", "mine.yaml:6"]
