import pytest

from torchtune_lite import config
from torchtune_lite.datasets import instruct_dataset
from torchtune_lite.errors import DataError

ROWS = [{"input": "hi", "output": "yo"}, {"input": "a", "output": "b"}]


def test_the_answer_is_in_the_loss_and_the_question_on_request(tokenizer, jsonl, written):
    path = jsonl(ROWS)
    assert written(instruct_dataset(tokenizer, source=path)) == [
        ("⟨▁hiyo⟩", "···yo⟩·"),
        ("⟨▁ab⟩", "··b⟩·"),
    ]
    assert written(instruct_dataset(tokenizer, source=path, train_on_input=True))[0] == ("⟨▁hiyo⟩", "▁hiyo⟩·")


def test_takes_torchtunes_arguments_from_a_config(tokenizer, jsonl, written):
    node = {
        "_component_": "torchtune.datasets.instruct_dataset",
        "source": "json",
        "data_files": jsonl([{"q": "hi", "a": "yo"}, {"q": "x", "a": "y"}]),
        "column_map": {"input": "q", "output": "a"},
        "new_system_prompt": "s",
        "train_on_input": False,
        "packed": False,
        "split": "train[:50%]",
    }
    assert written(config.instantiate(node, tokenizer)) == [("⟨▁shiyo⟩", "····yo⟩·")]


def test_names_file_and_line_of_a_bad_row(tokenizer, jsonl):
    path = jsonl([ROWS[0], {"input": "x", "output": None}])
    with pytest.raises(DataError, match="rows.jsonl:2: column 'output' must be text, got null$"):
        instruct_dataset(tokenizer, source=path)
