import pytest

from torchtune_lite.data import OpenAIToMessages, ShareGPTToMessages
from torchtune_lite.errors import DataError


def seen(sample):
    return [(message.role, message.text_content, message.masked) for message in sample["messages"]]


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
        (openai([("user", "Q")]), "has 1 message"),
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


def call(name, arguments):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": None, "tool_calls": [call("add", '{"é": [1]}'), call("now", "{}")]},
    {"role": "tool", "tool_call_id": "1", "content": "2"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [call("add", {"x": 1})]},
    {"role": "tool", "content": [{"type": "text", "text": "3"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A"}], "tool_calls": [call("now", None)]},
]


def test_tool_calls_become_lines_after_the_content():
    messages = OpenAIToMessages()({"messages": TOOLS})["messages"]
    assert [(message.text_content, message.masked, message.ipython, message.eot) for message in messages] == [
        ("Q", True, False, True),
        ('{"name": "add", "arguments": {"é": [1]}}\n{"name": "now", "arguments": {}}', False, True, False),
        ("2", True, False, False),
        ('Let me see.\n{"name": "add", "arguments": {"x": 1}}', False, True, False),
        ("3", True, False, False),
        ('A\n{"name": "now", "arguments": {}}', False, True, True),
    ]


@pytest.mark.parametrize(
    "turn, message",
    [
        ({"role": "assistant", "content": None}, r"messages\[1\].content must be text, got null"),
        ({"role": "assistant", "content": 3, "tool_calls": [call("f", "{}")]}, "content must be text, got int"),
        ({"role": "assistant", "tool_calls": [call("f", "{")]}, r"\[1\].tool_calls\[0\].function.arguments is no JSON"),
        ({"role": "assistant", "tool_calls": [call("f", "{}"), {}]}, r"\[1\].tool_calls\[1\] has no function.name"),
        ({"role": "tool", "tool_calls": [call("f", "{}")]}, "has keys role, tool_calls; conversation_style=openai"),
        ({"role": "assistant", "content": "A", "weight": 0.5}, r"messages\[1\].weight=0.5 must be 0 .* or 1"),
        ({"role": "assistant", "content": "A", "masked": "no"}, r"messages\[1\].masked='no' must be true or false"),
    ],
)
def test_says_what_is_wrong_with_a_call_or_a_weight(turn, message):
    with pytest.raises(DataError, match=message):
        OpenAIToMessages()({"messages": [TOOLS[0], turn]})


def test_a_message_without_weight_is_not_in_the_loss():
    turns = openai(CHAT)["turns"]
    marks = [{"weight": None}, {"masked": False}, {"weight": 0}, {"weight": 1}, {"weight": 1, "masked": None}]
    row = {"turns": [turn | mark for turn, mark in zip(turns, marks, strict=True)]}
    assert [masked for *_, masked in seen(OpenAIToMessages("turns")(row))] == [True, True, True, True, False]
    assert [masked for *_, masked in seen(OpenAIToMessages("turns", True)(row))] == [False, False, True, False, False]
    row["turns"][4] |= {"masked": True}
    assert all(masked for *_, masked in seen(OpenAIToMessages("turns", masking_strategy="train_on_last")(row)))


def test_the_column_has_a_usual_name_and_may_be_nested():
    assert len(seen(OpenAIToMessages()({"messages": openai(CHAT)["turns"]}))) == 5
    assert len(seen(ShareGPTToMessages()({"conversations": sharegpt(CHAT)["turns"]}))) == 5
    assert len(seen(OpenAIToMessages("data.0.turns")({"data": [openai(CHAT)]}))) == 5
