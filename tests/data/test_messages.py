import pytest

from torchtune_lite.data import AlpacaToMessages, InputOutputToMessages, Message, validate_messages
from torchtune_lite.data.messages import ROLES, Masking
from torchtune_lite.errors import ConfigError, DataError


def seen(sample):
    return [(message.role, message.text_content, message.masked) for message in sample["messages"]]


def test_alpaca_prompt_with_and_without_input():
    row = {"instruction": "Add {x}", "input": "1 + 1", "output": "2"}
    (user, prompt, masked), answer = seen(AlpacaToMessages()(row))
    assert prompt.startswith("Below is an instruction that describes a task, paired with an input")
    assert prompt.endswith("### Instruction:\nAdd {x}\n\n### Input:\n1 + 1\n\n### Response:\n")
    assert (user, masked, answer) == ("user", False, ("assistant", "2", False))
    for without in ({**row, "input": ""}, {**row, "input": None}, {"instruction": "Add {x}", "output": "2"}):
        prompt = seen(AlpacaToMessages(train_on_input=False)(without))[0]
        assert prompt[1].endswith("the request.\n\n### Instruction:\nAdd {x}\n\n### Response:\n") and prompt[2]


def test_input_output_maps_columns_and_puts_the_system_prompt_first():
    transform = InputOutputToMessages(column_map={"input": "question"}, new_system_prompt="S")
    assert seen(transform({"question": "Q", "output": "A"})) == [
        ("system", "S", True),
        ("user", "Q", True),
        ("assistant", "A", False),
    ]


@pytest.mark.parametrize(
    "transform, row, message",
    [
        (
            InputOutputToMessages,
            {"q": "Q", "output": "A"},
            r"missing column 'input' \(has: q, output\); set column_map.input",
        ),
        (InputOutputToMessages, {"input": "Q"}, r"missing column 'output' \(has: input\); set column_map.output"),
        (InputOutputToMessages, {"input": None, "output": "A"}, "column 'input' must be text, got null"),
        (InputOutputToMessages, {"input": "Q", "output": ["A"]}, "column 'output' must be text, got list"),
        (AlpacaToMessages, {"input": "Q", "output": "A"}, "missing column 'instruction'"),
        (AlpacaToMessages, {"instruction": "Q", "input": [], "output": "A"}, "column 'input' must be text, got list"),
    ],
)
def test_says_what_is_wrong_with_a_column(transform, row, message):
    with pytest.raises(DataError, match=message):
        transform()(row)


def test_a_message_has_a_known_role():
    with pytest.raises(DataError, match="role='bot' is not one of system, user, assistant, tool, ipython"):
        Message("bot", "hi")


def test_a_message_is_in_the_loss_by_its_role_unless_told():
    for role in ROLES:
        assert Message(role, "hi").masked is (role != "assistant")
        assert [Message(role, "hi", masked=masked).masked for masked in (True, False)] == [True, False]


def test_numbers_are_text_and_other_columns_noted():
    alpaca = AlpacaToMessages()({"instruction": 1, "input": 0, "output": True, "id": 7, "text": None})
    assert "### Instruction:\n1\n\n### Input:\n0\n" in seen(alpaca)[0][1] and seen(alpaca)[1][1] == "true"
    assert sorted(note.subject for note in alpaca["notes"]) == [
        *("column 'id'", "column 'input'", "column 'instruction'", "column 'output'")
    ]
    pair = InputOutputToMessages(column_map={"input": "q.text"})({"q": {"text": "Q"}, "output": "A", "x": "y"})
    assert [note.subject for note in pair["notes"]] == ["column 'x'"]


def test_validates_messages_of_any_origin():
    validate_messages([Message("user", "Q"), Message("assistant", "A")])
    with pytest.raises(DataError, match="second user message"):
        validate_messages([Message("user", "Q"), Message("user", "R")])


TURNS = ["system", "user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(
    "train_on_input, strategy, in_loss",
    [
        (True, None, [0, 1, 2, 3, 4, 5]),
        (False, None, [2, 4]),
        (False, "train_on_all", [1, 2, 3, 4, 5]),
        (True, "train_on_assistant", [2, 4]),
        (True, "train_on_last", [4]),
    ],
)
def test_masks_by_strategy(train_on_input, strategy, in_loss):
    messages = Masking(train_on_input, strategy)([Message(role, role, masked=False) for role in TURNS])
    assert [i for i, message in enumerate(messages) if not message.masked] == in_loss
    masked = Masking(train_on_input, strategy)([Message(role, role, masked=True) for role in TURNS])
    assert all(message.masked for message in masked)


def test_refuses_a_strategy_that_does_not_exist():
    with pytest.raises(ConfigError, match="masking_strategy='last' is not one of train_on_all, train_on_assistant, tr"):
        InputOutputToMessages(masking_strategy="last")


def test_columns_may_be_nested():
    row = {"q": {"text": "Q"}, "choices": [{"text": "A"}]}
    columns = {"input": "q.text", "output": "choices.0.text"}
    assert [text for _, text, _ in seen(InputOutputToMessages(column_map=columns)(row))] == ["Q", "A"]
    alpaca = AlpacaToMessages(column_map={**columns, "instruction": "q.text", "input": "q.more"})
    assert "### Input" not in seen(alpaca(row))[0][1]
    assert "### Input:\nM" in seen(alpaca({**row, "q": {"text": "Q", "more": "M"}}))[0][1]
