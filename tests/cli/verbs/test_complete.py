import subprocess
import sys

import pytest

from torchtune_lite.cli import main

CONFIG = "model: {rank: 8, parts: [{a: 1}]}\nsteps: 2\nx_mine: 3\n"


@pytest.fixture
def answers(tune, folder):
    """Completions of the last word of a line, among a user's files."""
    (folder / "my.yaml").write_text("recipe: full_finetune_single_device\n" + CONFIG)
    (folder / "mine.py").write_text("class Settings:\n    own_key: int = 1\n")
    (folder / "notes.txt").write_text("")
    (folder / "sub").mkdir()
    (folder / "sub/other.yml").write_text("")
    (folder / ".hidden.yaml").write_text("")
    return lambda line: tune("complete", "--", line).splitlines()


RUN = "tune run full_finetune_single_device --config my.yaml "
FULL = ["full_finetune_distributed", "full_finetune_single_device"]
KEYS = ["model.parts.0.a=", "model.parts.0=", "model.parts=", "model.rank=", "model="]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tune in", ["inspect"]),
        ("tune --v", ["--version"]),
        ("/some/where/tune --debug cop", []),
        ("tune run full", FULL),
        ("tune run mi", ["mine.py"]),
        ("tune run generate ", ["--config"]),
        ("tune run generate --co", ["--config"]),
        ("tune run generate --config tin", ["tiny/1M_full"]),
        ("tune run generate --config=my", ["--config=my.yaml"]),
        ("tune run generate --config s", ["sub/"]),
        ("tune run generate --config sub/", ["sub/other.yml"]),
        ("tune run generate --config n", []),
        (RUN + "mod", KEYS),
        (RUN + "s", ["steps="]),
        (RUN + "steps=3 na", ["name="]),  # a key that only the recipe declares
        (RUN + "~mo", ["~model", "~model.parts", "~model.parts.0", "~model.parts.0.a", "~model.rank"]),
        (RUN + "--al", ["--allow-component"]),
        ("tune run mine.py --config=my.yaml own", ["own_key="]),
        ("tune cat m", ["my.yaml"]),
        ("tune cat my.yaml mod", []),
        ("tune cp gen", ["generate"]),
        ("tune cp generate n", ["notes.txt"]),
        ("tune validate my.yaml --re", ["--recipe"]),
        ("tune validate my.yaml --recipe ge", ["generate"]),
        ("tune validate my.yaml model.r", ["model.rank="]),
        ("tune inspect my.yaml --recipe mine.py own", ["own_key="]),
        ("tune inspect --rows 3 my", ["my.yaml"]),
        ("tune generate s", ["sub/"]),
        ("tune generate my", []),
        ("tune generate sub/ --file no", ["notes.txt"]),
        ("tune completion ", ["bash", "zsh"]),
        ("tune nonsense ", []),
        ("tune run generate --config missing.yaml x", []),
    ],
)
def test_the_last_word(line, expected, answers):
    assert answers(line) == expected


def test_a_config_that_cannot_be_read_gives_no_answers_and_no_error(answers, folder):
    (folder / "my.yaml").write_text("a: [\n")
    assert answers(RUN + "a") == []


def test_the_verb_is_hidden():
    assert "complete" not in main.VERBS and "\n  complete " not in main.HELP


def test_no_torch_is_loaded_and_the_recipe_is_not_run(folder):
    code = (
        "import sys; from torchtune_lite.cli.main import main\n"
        "sys.argv = ['tune', 'complete', '--', 'tune validate demo/address_qlora save_e']\nmain()\n"
        "print(sorted({'torch', 'numpy', 'wandb'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("save_every_n_steps=\n", "[]\n")
