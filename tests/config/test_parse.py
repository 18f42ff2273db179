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
