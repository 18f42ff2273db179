"""The claims of the pages in docs/: their commands are run, and the keys they name exist."""

import ast
import inspect
import io
import json
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import peft
import pytest
import transformers
import yaml

from torchtune_lite import catalog, config
from torchtune_lite.cli.keys import names
from torchtune_lite.cli.main import main
from torchtune_lite.data import SentencePieceTokenizer

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMMANDS = [
    pytest.param(words, shown, id=f"{page.stem}: {' '.join(words)[:60]}")
    for page in [*sorted(DOCS.glob("coming_from_*.md")), DOCS / "tokenizers.md"]
    for block in re.findall(r"(?:^    .*\n)+", page.read_text(encoding="utf-8"), re.M)
    for (first, *shown) in [block.rstrip("\n").split("\n")]
    if first.startswith("    $ tune ")
    for words in [first.split()[2:]]
]


@pytest.mark.parametrize(("words", "shown"), COMMANDS)
def test_a_command_says_what_the_page_says(words, shown, folder, monkeypatch, capsys):
    """Each line shown is in the output, in its order; … stands for anything."""
    (folder / "my_torchtune_recipe.py").write_text("import torchtune\n@config.parse\ndef recipe_main(cfg): ...\n")
    (folder / "my_torchtune.yaml").write_text("epochs: 1\n")
    monkeypatch.setattr(sys, "argv", ["tune", *words])
    try:
        main()
        failed = False
    except SystemExit as exit:
        failed = bool(exit.code)
    out, err = capsys.readouterr()
    lines = iter((err + out).splitlines())
    for line in shown:
        pattern = ".*".join(map(re.escape, line[4:].rstrip().split("…")))
        assert any(re.fullmatch(pattern, each) for each in lines), f"{line.strip()!r} is not in:\n{err + out}"
    assert failed == any("error" in line for line in shown)


def test_the_pages_have_commands():
    assert len(COMMANDS) >= 12


PAGE = (DOCS / "data.md").read_text(encoding="utf-8")
FORMATS = re.findall(r"^    (\{.*\})\n\n((?:    .*\n)+)", PAGE, re.M)


@pytest.mark.parametrize(("row", "dataset"), FORMATS, ids=[text.split()[1].rpartition(".")[2] for _, text in FORMATS])
def test_a_row_of_the_data_page_can_be_trained_on_by_its_yaml(row, dataset, folder, char_model):
    (folder / "rows.jsonl").write_text(row, encoding="utf-8")
    built = config.instantiate(yaml.safe_load(dataset), SentencePieceTokenizer(char_model))
    assert len(built) == 1 and any(label != -100 for name in built.names[1:] for label in built[0][name])


def test_the_commands_of_the_data_page(folder, monkeypatch, capsys):
    (folder / "rows.jsonl").write_text('{"input": "a", "output": "b"}\n')
    commands = [line.split("   ")[0].split()[1:] for line in re.findall(r"^    (\$ tune .*)", PAGE, re.M)]
    assert len(commands) == 2 and len(FORMATS) == 8
    for words in (commands[0], ["tune", "validate", *commands[1][4:]]):  # which would train for a minute
        monkeypatch.setattr(sys, "argv", words)
        main()
    assert "1 sample of 1 row\n" in capsys.readouterr().out


def settings_keys():
    """The keys of the LoRA recipe, of its model, tokenizer, checkpointer and data sets."""
    keys = set(names(catalog.find_recipe("lora_finetune_single_device").path))
    for path in ("models.llama2.lora_llama2", "models.llama2.llama2_tokenizer", "datasets.chat_dataset"):
        keys |= set(inspect.signature(config.find(f"torchtune_lite.{path}")).parameters)
    return keys | set(inspect.signature(config.find("torchtune_lite.datasets.instruct_dataset")).parameters)


def rows(section):
    """The cells of a table of coming_from_peft.md."""
    text = (
        (DOCS / "coming_from_peft.md")
        .read_text(encoding="utf-8")
        .partition(f"\n## {section}\n")[2]
        .partition("\n## ")[0]
    )
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("section", ["LoraConfig", "TrainingArguments"])
def test_each_key_that_an_argument_is_mapped_to_exists(section):
    mapped = [name for _, ours, *_ in rows(section) for name in re.findall(r"`(\w+)`", ours)]
    assert len(mapped) > 5 and [name for name in mapped if name not in settings_keys()] == []


def test_each_argument_of_peft_and_the_trainer_exists():
    gone = {"group_by_length", "torch_compile", "warmup_ratio"}  # of some versions of the Trainer
    for section, cls in (("LoraConfig", peft.LoraConfig), ("TrainingArguments", transformers.TrainingArguments)):
        known = set(inspect.signature(cls).parameters) | gone
        theirs = [name for cells in rows(section) for name in re.findall(r"`(\w+)`", cells[0])]
        assert [name for name in theirs if name not in known] == []


def test_the_data_builders_and_their_arguments_exist():
    named = [name for _, ours in rows("Data") for name in re.findall(r"`([\w.]+)[`:]", ours)]
    builders = [name for name in named if name.endswith("_dataset")]
    assert len(builders) == 3 and all(config.find(f"torchtune_lite.datasets.{name}") for name in builders)
    keys = {name.rpartition(".")[2] for name in named if name not in builders}
    assert keys - settings_keys() == set()


def test_the_page_on_security_names_tests_that_exist():
    """A row of its tables without a test would be an unchecked claim."""
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    tests = DOCS.parent / "tests"
    claims = [line for line in text.splitlines() if line.startswith("| ") and "shown by" not in line]
    assert len(claims) > 20
    for claim in claims:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", claim)
        assert named, claim
        for path, name in named:
            tree = ast.parse((tests / path).read_text(encoding="utf-8"))
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], f"{path}::{name}"


COMPONENTS = (DOCS / "components.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^    # (my_\w+)\.py\n((?:    .*\n|\n)+)", COMPONENTS, re.M))
OF_THE_PAGE = """\
recipe: lora_finetune_single_device
output_dir: out
model: {_component_: my_model.lora_in_the_last_layers, lora_rank: 2}
tokenizer: {_component_: my_tokenizer.Lowercase, path: "${asset:base/tokenizer.model}"}
checkpointer: {_component_: torchtune_lite.training.FullModelHFCheckpointer, checkpoint_dir: "${asset:base}"}
dataset:
  _component_: torchtune_lite.datasets.sft_dataset
  source: rows.jsonl
  message_transform: my_rows.to_messages
  filter_fn: my_rows.is_short
  on_bad_sample: skip
optimizer: {_component_: my_optimizer.sgd_without_decay_of_norms, lr: 0.1}
lr_scheduler: {_component_: my_optimizer.halved_at_the_end, share: 0.5}
loss: {_component_: my_loss.SmoothedLoss, smoothing: 0.2}
metric_logger: {_component_: my_logger.LossFile, path: losses.txt}
batch_size: 1
seed: 0
device: cpu
dtype: fp32
"""


def test_the_modules_of_the_components_page_can_be_trained_with(folder, monkeypatch):
    assert set(MODULES) == {f"my_{name}" for name in ["loss", "optimizer", "rows", "logger", "tokenizer", "model"]}
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
    questions = ["abc", "de", " ", "x" * 300, "f g"]
    (folder / "rows.jsonl").write_text("".join(f'{{"input": "{each}", "output": "Yes"}}\n' for each in questions))
    (folder / "my.yaml").write_text(OF_THE_PAGE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["tune", "run", "lora_finetune_single_device", "--config", "my.yaml"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows if "lr" in row] == [0.1, 0.1, 0.05]
    assert len((folder / "losses.txt").read_text().splitlines()) == 3
    assert min(row["loss"] for row in rows if "loss" in row) > 1  # a mean over all labels, not divided twice
    for name in MODULES:
        sys.modules.pop(name)


def test_the_answer_on_the_components_page(folder, monkeypatch, capsys):
    [[command, answer]] = re.findall(r"^    \$ (tune validate .*)\n    (tune: error: .*)", COMPONENTS, re.M)
    old = "class Old:\n    def forward(self, logits, labels): ...\n    __call__ = forward\n"
    (folder / "my_loss.py").write_text(old)
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit):
        main()
    sys.modules.pop("my_loss")
    assert capsys.readouterr().err == f"{answer}\n"


CHAT = (DOCS / "chat.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_on_chat(folder, monkeypatch, capsys):
    """They are run on a model without a run, but for conversations, which need a terminal or a pipe."""
    shutil.copytree(catalog.folder("recipes").parent / "torchtune_lite/assets/base", "runs/qlora")
    (folder / "prompts.jsonl").write_text('{"input": "a"}\n{"text": "?"}\n', encoding="utf-8")
    commands = [shlex.split(line.split("   ")[0]) for line in re.findall(r"^    (tune generate .*)", CHAT, re.M)]
    assert len(commands) == 2
    for words in commands:
        monkeypatch.setattr(sys, "argv", [*words, "--max-new-tokens", "3", "device=cpu"])
        with pytest.raises(SystemExit) as exit:
            main()
        assert not exit.value.code
    results = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    shown = [json.loads(line) for line in re.findall(r"^    (\{.row.*)", CHAT, re.M)]
    assert [json.loads(line).keys() for line in results] == [each.keys() for each in shown]
    assert json.loads(results[1])["problem"] == shown[1]["problem"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    monkeypatch.setattr(sys, "argv", ["tune", "chat", "runs/qlora", "temperature=0", "max_new_tokens=3", "device=cpu"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code
