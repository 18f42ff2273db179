import json

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
        ({"turns": ["hello"]}, r"turns\[0\] is str; conversation_style=openai expects 'role' and 'content'"),
        (sharegpt(CHAT), r"turns\[0\] has keys from, value; conversation_style=openai expects"),
        (
            openai([("user", "Q"), ("asistant", "A")]),
            r"turns\[1\].role='asistant' is not one of system, user, assistant",
        ),
        (openai([("user", None), ("assistant", "A")]), r"turns\[0\].content must be text, got null"),
        (openai([("user", {}), ("assistant", "A")]), r"turns\[0\].content must be text, got dict"),
        (openai([("user", []), ("assistant", "A")]), r"turns\[0\].content must be text, got list"),
        (openai([("user", IMAGE), ("assistant", "A")]), r"turns\[0\].content\[0\] is not a text part"),
        (openai([("user", "a\ud800"), ("assistant", "A")]), "half a surrogate pair at character 2"),
        (openai([]), "has 0 messages"),
        (openai([("user", "Q")]), "has 1 message"),
        (openai([("user", "Q"), ("user", "R")]), r"messages\[1\] is the second user message in a row"),
        (openai([*CHAT[1:3], ("assistant", "A")]), r"messages\[2\] is the second assistant message in a row; join"),
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
        ({"role": "assistant", "content": {}, "tool_calls": [call("f", "{}")]}, "content must be text, got dict"),
        (
            {"role": "assistant", "tool_calls": [call("f", "{")]},
            r"\[1\].tool_calls\[0\].function.arguments is not JSON",
        ),
        ({"role": "assistant", "tool_calls": "f()"}, r"messages\[1\].tool_calls must be a list, got str"),
        ({"role": "assistant", "tool_calls": [call("f", "{}"), {}]}, r"\[1\].tool_calls\[1\] has no function.name"),
        ({"role": "tool", "tool_calls": [call("f", "{}")]}, "has keys role, tool_calls; conversation_style=openai"),
        ({"role": "assistant", "content": "A", "weight": 0.5}, r"messages\[1\].weight=0.5 must be 0 .* or 1"),
        ({"role": "assistant", "content": "A", "masked": "no"}, r"messages\[1\].masked='no' must be true or false"),
        ({"role": "assistant", "content": "A", "loss": 2.5}, r"messages\[1\].loss=2.5 must be true or false"),
        ({"role": "assistant", "content": "A", "train": []}, r"messages\[1\].train=\[\] must be true or false"),
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


@pytest.mark.parametrize("transform, form", [(OpenAIToMessages, openai), (ShareGPTToMessages, sharegpt)])
@pytest.mark.parametrize("flag", ["weight", "loss", "train", "training", "masked"])
def test_a_flag_keeps_a_turn_out_of_the_loss_in_either_style(transform, form, flag):
    out = flag == "masked"
    for value, masked in ((out, True), (int(out), True), (not out, False), (None, False)):
        turns = form(CHAT)["turns"]
        turns[2][flag] = turns[1][flag] = value
        assert seen(transform("turns")({"turns": turns})) == MASKED[:2] + [("assistant", "A", masked)] + MASKED[3:]


def what(sample):
    return sorted(note.subject for note in sample.get("notes", ()))


@pytest.mark.parametrize("transform, form", [(OpenAIToMessages, openai), (ShareGPTToMessages, sharegpt)])
def test_a_system_prompt_may_stand_beside_the_conversation(transform, form):
    for beside in ("S", None, ""):
        row = form(CHAT[1:]) | {"system": beside, "id": 3, "more": None}
        sample = transform("turns")(row)
        assert seen(sample) == MASKED[not beside :] and what(sample) == ["column 'id'"]
    assert seen(transform("turns")(form(CHAT) | {"system": "S"})) == MASKED
    assert seen(transform("turns", new_system_prompt="N")(row | {"system": "S"}))[0] == ("system", "N", True)
    with pytest.raises(DataError, match="a column 'system', and another system prompt in the conversation; leave one"):
        transform("turns")(form(CHAT) | {"system": "T"})
    with pytest.raises(DataError, match="column 'system' must be text, got list"):
        transform("turns")(form(CHAT[1:]) | {"system": ["S"]})


def test_keys_of_a_turn_that_are_not_read_are_noted():
    row = openai(CHAT)
    row["turns"][1] |= {"name": "Ann", "date": None}
    row["turns"][2] |= {"reasoning_content": "hm", "weight": 1}
    assert what(OpenAIToMessages("turns")(row)) == ["'name' of a turn", "'reasoning_content' of a turn"]
    assert OpenAIToMessages("turns")(row)["messages"][2].original == {
        "role": "assistant",
        "content": "A",
        "reasoning_content": "hm",
    }


@pytest.mark.parametrize(
    "form",
    [
        lambda turns: json.dumps(turns),
        lambda turns: {key: [turn[key] for turn in turns] for key in turns[0]} | {"name": None},
    ],
    ids=["JSON text", "a struct of lists"],
)
@pytest.mark.parametrize("transform, style", [(OpenAIToMessages, openai), (ShareGPTToMessages, sharegpt)])
def test_other_shapes_of_the_list(transform, style, form):
    assert seen(transform("turns")({"turns": form(style(CHAT)["turns"])})) == MASKED


def test_roles_have_several_names_in_sharegpt():
    for user in ("human", "user"):
        for answer in ("gpt", "assistant", "chatgpt", "model", "bot"):
            turns = [{"from": user, "value": "Q"}, {"from": answer, "value": "A"}]
            assert seen(ShareGPTToMessages("turns")({"turns": turns})) == [MASKED[1], MASKED[2]]


def test_the_assistant_may_open_a_conversation():
    for chat in (CHAT[2:], [CHAT[0], *CHAT[2:]]):
        assert seen(ShareGPTToMessages("turns")(sharegpt(chat))) == [(r, t, r != "assistant") for r, t in chat]


CALL = '{"name": "news", "arguments": {"é": 1}}'


@pytest.mark.parametrize(
    "value, lines",
    [
        (CALL, CALL),
        (json.loads(CALL), CALL),
        (f"[{CALL}, {CALL}]", f"{CALL}\n{CALL}"),
        ('{"name": "f"}', '{"name": "f", "arguments": {}}'),
    ],
)
@pytest.mark.parametrize("names", [("function_call", "observation"), ("tool_call", "tool_response")])
def test_calls_and_answers_of_sharegpt(value, lines, names):
    turns = [{"from": "human", "value": "Q"}, {"from": names[0], "value": value}]
    turns += [{"from": names[1], "value": ["rain"]}, {"from": "gpt", "value": "A"}]
    messages = ShareGPTToMessages()({"conversations": turns})["messages"]
    assert [(m.role, m.text_content, m.masked, m.ipython) for m in messages[1:3]] == [
        ("assistant", lines, False, True),
        ("tool", '["rain"]', True, False),
    ]
    assert messages[1].original["tool_calls"][0]["function"]["name"] == json.loads(lines.split("\n")[0])["name"]
    assert messages[2].original == {"role": "tool", "content": ["rain"]}


@pytest.mark.parametrize("value", ["news()", "3", None, "[{}]", ["news"]])
def test_a_call_of_sharegpt_that_is_none(value):
    turns = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": value}]
    with pytest.raises(DataError, match=r"conversations\[1\].value of a function_call must be JSON text: {\"name\""):
        ShareGPTToMessages()({"conversations": turns})


def test_older_forms_of_openai():
    older = [{"role": "developer", "content": "S"}, TOOLS[0]]
    older += [{"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}]
    older += [{"role": "function", "name": "add", "content": "3"}, {"role": "assistant", "content": "A"}]
    newer = [{"role": "system", "content": "S"}, TOOLS[0]]
    newer += [{"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}]
    newer += [{"role": "tool", "name": "add", "content": "3"}, {"role": "assistant", "content": "A"}]
    samples = [OpenAIToMessages()({"messages": turns}) for turns in (older, newer)]
    assert seen(samples[0]) == seen(samples[1]) and samples[0]["messages"][3].original == newer[3]
    assert samples[0]["messages"][2].original == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
    }


@pytest.mark.parametrize(
    "content, text",
    [
        ({"sum": 3, "é": None}, '{"sum": 3, "é": null}'),
        (["rain", 2], '["rain", 2]'),
        ([{"type": "image"}], '[{"type": "image"}]'),
        (3, "3"),
        (True, "true"),
        ([{"type": "text", "text": "3"}], "3"),
    ],
)
def test_what_a_tool_answers_may_be_anything(content, text):
    for role in ("tool", "function", "ipython"):
        turns = [*TOOLS[:2], {"role": role, "content": content}, {"role": "assistant", "content": "A"}]
        assert OpenAIToMessages()({"messages": turns})["messages"][2].text_content == text


def test_numbers_and_truth_values_are_text_and_noted():
    for transform, form in ((OpenAIToMessages, openai), (ShareGPTToMessages, sharegpt)):
        sample = transform("turns")(form([("user", 5), ("assistant", True)]))
        assert seen(sample) == [("user", "5", True), ("assistant", "true", False)]
        assert what(sample) == ["the content of a turn"]


TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_and_variables_of_a_row_are_for_the_chat_template(tools):
    row = openai(CHAT) | {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    sample = OpenAIToMessages("turns")(row)
    assert sample["chat_template_kwargs"] == {"enable_thinking": False, "tools": [TOOL]}
    assert what(sample) == ["'enable_thinking' of column 'chat_template_kwargs'", "column 'tools'"]
    for none in (None, ""):
        empty = openai(CHAT) | {"tools": none, "chat_template_kwargs": none}
        assert set(OpenAIToMessages("turns")(empty)) == {"messages"}


@pytest.mark.parametrize(
    "column, message",
    [
        ({"tools": "add(a, b)"}, "column 'tools' must be a list of objects, or JSON text of one, got str"),
        ({"tools": {"name": "add"}}, "column 'tools' must be a list of objects, or JSON text of one, got dict"),
        ({"tools": ["add"]}, "column 'tools' must be a list of objects"),
        ({"chat_template_kwargs": [1]}, "column 'chat_template_kwargs' must be an object, got list"),
        ({"chat_template_kwargs": {"messages": 1}}, "column 'chat_template_kwargs': messages cannot be set; leave it"),
    ],
)
def test_says_what_is_wrong_beside_a_conversation(column, message):
    with pytest.raises(DataError, match=message):
        OpenAIToMessages("turns")(openai(CHAT) | column)


def test_the_column_has_a_usual_name_and_may_be_nested():
    assert len(seen(OpenAIToMessages()({"messages": openai(CHAT)["turns"]}))) == 5
    assert len(seen(ShareGPTToMessages()({"conversations": sharegpt(CHAT)["turns"]}))) == 5
    assert len(seen(OpenAIToMessages("data.0.turns")({"data": [openai(CHAT)]}))) == 5
