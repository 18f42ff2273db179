import sys

import pytest

from torchtune_lite import config
from torchtune_lite.config.schema.components import Component
from torchtune_lite.data import InputOutputToMessages
from torchtune_lite.datasets import sft_dataset
from torchtune_lite.errors import ConfigError, DataError

OWN = """
from torchtune_lite.data import Message
ROLES = "system", "user", "assistant"

class Doubled:
    def __init__(self, times=2): self.times = times
    def __call__(self, row):
        return {"messages": [Message("user", row["q"] * self.times, masked=True), Message("assistant", row["a"])]}

def plain(row): return Doubled(1)(row)
def by_role(row): return {"messages": [Message(*turn) for turn in zip(ROLES, ["s", *row.values()])]}
def told(row): return {"messages": [Message("user", row["q"], masked=False), Message("assistant", row["a"])]}
def dicts(row): return {"messages": [{"role": "user", "content": row["q"]}]}
def nothing(row): return [row]
def questions(row): return {"messages": [Message("user", row["q"])] * 2}
"""


@pytest.fixture
def built(folder, jsonl, tokenizer, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_turns", raising=False)  # of another test's folder
    (folder / "own_turns.py").write_text(OWN)
    node = {"_component_": "torchtune_lite.datasets.sft_dataset", "source": jsonl([{"q": "hi", "a": "yo"}])}
    return lambda transform: config.instantiate(
        Component(node | {"message_transform": transform}, "dataset"), tokenizer
    )


@pytest.mark.parametrize(
    "transform, expected",
    [
        ("own_turns.plain", "⟨▁hiyo⟩"),
        ("own_turns.Doubled", "⟨▁hihiyo⟩"),
        ("own_turns.by_role", "⟨▁shiyo⟩"),
        (Component({"_component_": "own_turns.Doubled", "times": 3}, ""), "⟨▁hihihiyo⟩"),
    ],
)
def test_a_transform_of_the_users_own(built, written, transform, expected):
    [(tokens, labels)] = written(built(transform))
    assert (tokens, labels) == (expected, "·" * (len(expected) - 4) + "yo⟩·")


def test_a_message_may_be_told_to_be_in_the_loss(built, written):
    assert written(built("own_turns.told")) == [("⟨▁hiyo⟩", "▁hiyo⟩·")]


def test_a_transform_of_the_library(tokenizer, jsonl, written):
    path = jsonl([{"input": "hi", "output": "yo"}])
    dataset = sft_dataset(tokenizer, path, message_transform=InputOutputToMessages())
    assert written(dataset) == [("⟨▁hiyo⟩", "···yo⟩·")]


def test_what_is_no_conversation(built):
    with pytest.raises(DataError, match=r"rows.jsonl:1: messages\[1\] is the second user message in a row"):
        built("own_turns.questions")
    with pytest.raises(ConfigError, match="message_transform nothing must return {'messages': .*}, got list"):
        built("own_turns.nothing")
    with pytest.raises(ConfigError, match=r"dicts must return {'messages': \[data.Message, ...\]}, got dict"):
        built("own_turns.dicts")
