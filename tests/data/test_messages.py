import pytest

from torchtune_lite.data import (
    AlpacaToMessages,
    InputOutputToMessages,
    Message,
    OpenAIToMessages,
    ShareGPTToMessages,
    validate_messages,
)
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


CHAT = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")]
MASKED = [(role, text, role != "assistant") for role, text in CHAT]


def openai(chat):
    return {"turns": [{"role": role, "content": text} for role, text in chat]}


def sharegpt(chat):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"turns": [{"from": names[role], "value": text} for role, text in chat]}


@pytest.mark.parametrize("transform, form", [(OpenAIToMessages, openai), (ShareGPTToMessages, sharegpt)])
def test_conversations_have_every_answer_in_the_loss(transform, form):
    assert seen(transform("turns")(form(CHAT))) == MASKED
    assert seen(transform("turns", train_on_input=True)(form(CHAT))) == [(r, t, False) for r, t in CHAT]
    assert seen(transform("turns", new_system_prompt="N")(form(CHAT))) == [("system", "N", True)] + MASKED[1:]
    assert seen(transform("turns", new_system_prompt="N")(form(CHAT[1:]))) == [("system", "N", True)] + MASKED[1:]


def test_openai_content_may_be_text_parts():
    parts = [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]}
    message = OpenAIToMessages("messages")(row)["messages"][0]
    assert message.content == [{"type": "text", "content": "Q"}, {"type": "text", "content": "?"}]


def test_an_answer_may_follow_a_tool():
    chat = [("user", "Q"), ("assistant", "call"), ("tool", "42"), ("assistant", "A")]
    assert [masked for *_, masked in seen(OpenAIToMessages("turns")(openai(chat)))] == [True, False, True, False]


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": [], "x": 1}, r"missing column 'turns' \(has: prompt, x\); set conversation_column"),
        ({"turns": "hello"}, "column 'turns' must be a list of messages, got str"),
        ({"turns": None}, "must be a list of messages, got null"),
        ({"turns": ["hello"]}, r"turns\[0\] is str; conversation_style=openai wants 'role' and 'content'"),
        (sharegpt(CHAT), r"turns\[0\] has keys from, value; conversation_style=openai wants"),
        (
            openai([("user", "Q"), ("asistant", "A")]),
            r"turns\[1\].role='asistant' is not one of system, user, assistant",
        ),
        (openai([("user", None), ("assistant", "A")]), r"turns\[0\].content must be text, got null"),
        (openai([("user", 5), ("assistant", "A")]), r"turns\[0\].content must be text, got int"),
        (openai([("user", IMAGE), ("assistant", "A")]), r"turns\[0\].content\[0\] is not a text part"),
        (openai([("user", "a\ud800"), ("assistant", "A")]), "half a surrogate pair at character 2"),
        (openai([]), "has 0 messages"),
        (openai([("user", "Q")]), "has 1 messages"),
        (openai([("user", "Q"), ("user", "R")]), r"messages\[1\] is the second user message in a row"),
        (openai([("assistant", "A"), ("user", "Q")]), r"messages\[0\] is an assistant message that no user"),
        (openai([("system", "S"), ("assistant", "A")]), r"messages\[1\] is an assistant message that no user"),
        (openai([*CHAT[1:3], ("assistant", "A")]), r"messages\[2\] is an assistant message that no user"),
        (openai([("user", "Q"), ("system", "S")]), r"messages\[1\] is a system prompt"),
    ],
)
def test_says_what_is_wrong_with_a_conversation(row, message):
    with pytest.raises(DataError, match=message) as error:
        OpenAIToMessages("turns")(row)
    assert "\n" not in str(error.value)


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
        (AlpacaToMessages, {"instruction": "Q", "input": 3, "output": "A"}, "column 'input' must be text, got int"),
    ],
)
def test_says_what_is_wrong_with_a_column(transform, row, message):
    with pytest.raises(DataError, match=message):
        transform()(row)


def test_refuses_an_unknown_key_of_column_map():
    with pytest.raises(ConfigError, match="unknown keys question; its keys are input, output"):
        InputOutputToMessages(column_map={"question": "input"})
    with pytest.raises(ConfigError, match="unknown keys answer; its keys are instruction, input, output"):
        AlpacaToMessages(column_map={"answer": "output"})


def test_a_message_has_a_known_role():
    with pytest.raises(DataError, match="role='bot' is not one of system, user, assistant, tool, ipython"):
        Message("bot", "hi")


def test_validates_messages_of_any_origin():
    validate_messages([Message("user", "Q"), Message("assistant", "A")])
    with pytest.raises(DataError, match="second user message"):
        validate_messages([Message("user", "Q"), Message("user", "R")])
