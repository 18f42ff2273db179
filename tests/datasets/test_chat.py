import pytest

from torchtune_lite.datasets import chat_dataset
from torchtune_lite.errors import ConfigError, DataError

OPENAI = [
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yo"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
    }
]
SHAREGPT = [{"talk": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}]


def test_openai(tokenizer, jsonl, written):
    args = {"source": jsonl(OPENAI), "conversation_column": "messages", "conversation_style": "openai"}
    assert written(chat_dataset(tokenizer, **args)) == [("⟨▁shiyo⟩⟨▁ab⟩", "····yo⟩···b⟩·")]
    assert written(chat_dataset(tokenizer, **args, new_system_prompt="n")) == [("⟨▁nhiyo⟩⟨▁ab⟩", "····yo⟩···b⟩·")]
    assert written(chat_dataset(tokenizer, **args, train_on_input=True)) == [("⟨▁shiyo⟩⟨▁ab⟩", "▁shiyo⟩⟨▁ab⟩·")]


def test_sharegpt(tokenizer, jsonl, written):
    args = {"source": jsonl(SHAREGPT), "conversation_column": "talk", "conversation_style": "sharegpt"}
    assert written(chat_dataset(tokenizer, **args)) == [("⟨▁hiyo⟩", "···yo⟩·")]


def test_names_the_message_that_is_wrong(tokenizer, jsonl):
    path = jsonl([SHAREGPT[0], {"talk": [{"from": "human", "value": "hi"}, {"from": "gtp", "value": "yo"}]}])
    with pytest.raises(
        DataError, match=r"rows.jsonl:2: talk\[1\].from='gtp' is not one of system, human, user, gpt, assist"
    ):
        chat_dataset(tokenizer, source=path, conversation_column="talk", conversation_style="sharegpt")


def test_refuses_an_unknown_style(tokenizer, jsonl):
    with pytest.raises(ConfigError, match="conversation_style='chatml' is not one of openai, sharegpt"):
        chat_dataset(tokenizer, source=jsonl(OPENAI), conversation_column="messages", conversation_style="chatml")
