import json

import pytest

from torchtune_lite.cli.verbs import inspect
from torchtune_lite.errors import ConfigError, DataError

RECIPE = """
from dataclasses import dataclass
from typing import Any
from torchtune_lite import config

@dataclass
class Settings:
    tokenizer: Any = config.component()
    dataset: Any = config.component("tokenizer")
    model: Any = None
    batch_size: int = 1
"""
YAML = """
recipe: trains
tokenizer: {{_component_: torchtune_lite.data.SentencePieceTokenizer, path: {path}, max_seq_len: 9}}
dataset: {{_component_: torchtune_lite.datasets.instruct_dataset, source: rows.jsonl}}
"""


@pytest.fixture(autouse=True)
def my_yaml(shipped, folder, char_model, jsonl):
    (shipped / "recipes/trains.py").write_text(RECIPE)
    (folder / "my.yaml").write_text(YAML.format(path=char_model).lstrip())
    jsonl(
        [{"input": "hi", "output": "yo"}, {"input": "a\x1bz", "output": "b\nc"}, {"input": "hi", "output": "abcdefgh"}]
    )


def test_shows_counts_lengths_and_samples_with_the_loss_marked(tune):
    lines = tune("inspect", "my.yaml", "batch_size=2").splitlines()
    assert lines[:5] == [
        "dataset",
        "  3 samples of 3 rows",
        "  25 tokens, 48.0% of them in the loss",
        "  1 cut at max_seq_len=9, 0 left out without a label, 0 left out as bad",
        "  length in tokens: 7 to 9, median 9, mean 8.3",
    ]
    assert "    <bos>hi⟦yo<eos>⟧" in lines
    assert any(line.endswith("z⟦b") for line in lines) and "    c<eos>⟧" in lines
    assert lines[-1] == "2 optimizer steps an epoch"
    assert sum("█" in line for line in lines) == 2


def test_json_and_the_number_of_samples(tune):
    report = json.loads(tune("inspect", "my.yaml", "--json", "--rows", "1", "dataset.on_long_sample=skip"))
    assert len(report["dataset"]["shown"]) == 1
    assert (report["dataset"]["samples"], report["dataset"]["cut"]) == (2, 1)


def test_a_terminal_gets_colours_unless_it_does_not_want_them():
    pieces = [
        {"text": "a", "label": False, "special": False},
        {"text": "b", "label": True, "special": False},
        {"text": "<eos>", "label": True, "special": True},
    ]
    assert inspect.written(pieces, True) == "a\x1b[32mb\x1b[0m\x1b[32m\x1b[2m<eos>\x1b[0m"
    assert inspect.written(pieces, False) == "a⟦b<eos>⟧"
    steers = [{"text": "\x1b[2J\u202ec", "label": False, "special": False}]
    assert inspect.written(steers, True) == "\\x1b[2J\\u202ec"


def test_what_a_run_would_refuse_is_refused(tune, folder):
    (folder / "rows.jsonl").write_text("no\n")
    with pytest.raises(DataError, match="rows.jsonl:1:1: invalid JSON"):
        tune("inspect", "my.yaml")
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        tune("inspect", "my.yaml", "batch_sise=2")
    with pytest.raises(ConfigError, match="no key 'dataset', so it trains on nothing"):
        tune("inspect", "tiny/1M_full")
