import functools
import pickle
from datetime import datetime

import jinja2
import pytest
from transformers import AutoTokenizer

from tests.data.chats import TEMPLATES, TOOL_TEMPLATES, marked, plain, write_folder
from torchtune_lite.data import (
    ChatTemplate,
    Message,
    OpenAIToMessages,
    Rows,
    SFTDataset,
    fix_date,
    load_tokenizer,
)
from torchtune_lite.data.tokenizers.answers import Answers
from torchtune_lite.errors import ConfigError, DataError

CHATS = {
    "one turn": ["user", "what is it?", "assistant", "the answer is 42."],
    "system": ["system", "be brief", "user", "what?", "assistant", "42"],
    "turns": [
        "user",
        "what?",
        "assistant",
        "42",
        "user",
        "the dog",
        "assistant",
        "lazy",
        "user",
        "x",
        "assistant",
        "y",
    ],
    "unicode": ["user", "市場 é 𝄞 ﷺ", "assistant", "wörld 𝄞\u200d!", "user", "ß", "assistant", "市"],
    "spaces": ["user", "  the  fox ", "assistant", " two  spaces\n\nand lines\n", "user", "\n", "assistant", "  "],
    "empty answer": ["user", "what?", "assistant", "", "user", "", "assistant", "the"],
    "tool": ["user", "what?", "assistant", "ask", "tool", '{"answer": 42}', "assistant", "42"],
    "special tokens in the text": ["user", "</s> <s>", "assistant", "<|im_end|>the"],
}


def messages(chat):
    turns = CHATS[chat]
    return [Message(r, text, masked=r != "assistant") for r, text in zip(turns[::2], turns[1::2], strict=True)]


def dicts(conversation):
    return [{"role": message.role, "content": message.text_content} for message in conversation]


def by_transformers(tokenizer, conversation, template, **options):
    """Tokens and mask of a template whose assistant text is marked."""
    made = tokenizer.apply_chat_template(
        conversation,
        chat_template=template,
        **options,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    mask = [not assistant for assistant in made["assistant_masks"]]
    for i in range(1, len(mask)):  # it stops at the first of the tokens that the last character is written with
        if made["offset_mapping"][i] == made["offset_mapping"][i - 1]:
            mask[i] = mask[i - 1]
    return made["input_ids"], mask


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytelevel", "metaspace", "llama_json", "spm", "spm_legacy"])
def test_tokens_and_mask_are_those_of_transformers(kind, style, tmp_path):
    """The plain template gives the mask that transformers finds by the marks in the marked one."""
    folder = write_folder(tmp_path, kind, plain(TEMPLATES[style]))
    ours = load_tokenizer(folder, prompt_template="chat_template")
    theirs = AutoTokenizer.from_pretrained(folder)
    refused = 0
    for chat in CHATS:
        conversation = messages(chat)
        try:
            expected = by_transformers(theirs, dicts(conversation), marked(TEMPLATES[style]))
        except jinja2.TemplateError:
            refused += 1
            with pytest.raises(DataError):
                ours.tokenize_messages(conversation)
            continue
        tokens, mask = ours.tokenize_messages(conversation)
        assert (tokens, mask) == expected, chat
        prompt = theirs.apply_chat_template(dicts(conversation[:-1]), add_generation_prompt=True, return_dict=False)
        assert ours.tokenize_messages(conversation[:-1], add_eos=False)[0] == prompt, chat
    assert refused == {"llama2": 1, "mistral": 2, "gemma": 1}.get(style, 0)


def shown(tokenizer, conversation):
    """The text of the tokens in the loss."""
    tokens, mask = tokenizer.tokenize_messages(conversation)
    return tokenizer.tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if not m], False)


def test_another_template_gives_other_tokens(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(TEMPLATES["chatml"]))
    ours = load_tokenizer(folder, prompt_template="chat_template").tokenize_messages(messages("turns"))
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours == by_transformers(theirs, dicts(messages("turns")), marked(TEMPLATES["chatml"]))
    assert ours != by_transformers(theirs, dicts(messages("turns")), marked(TEMPLATES["zephyr"]))
    assert ours != by_transformers(
        theirs,
        dicts(messages("turns")),
        TEMPLATES["chatml"].replace("⟦", "{% generation %}{{ '' }}{% endgeneration %}").replace("⟧", ""),
    )


FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}⟦{% if loop.last %}"
    "{{ '[thought]' }}{% endif %}{{ m.content + '<|im_end|>' }}⟧{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that leaves out earlier thoughts."""


def test_marked_answers_are_found_also_where_earlier_turns_change(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", marked(FORGETS))
    ours = load_tokenizer(folder, prompt_template="chat_template")
    expected = by_transformers(AutoTokenizer.from_pretrained(folder), dicts(messages("turns")), marked(FORGETS))
    assert ours.tokenize_messages(messages("turns")) == expected
    assert shown(ours, messages("one turn")) == "[thought]the answer is 42.<|im_end|>"


@pytest.mark.parametrize("source", [plain(FORGETS), plain(FORGETS).replace("{% for", "{{ messages | length }}{% for")])
def test_answers_that_change_are_refused_in_one_sample(source, tmp_path):
    ours = load_tokenizer(write_folder(tmp_path, "bytelevel", source), prompt_template="chat_template")
    with pytest.raises(DataError, match=r"writes messages\[1\] differently once more turns follow.*generation"):
        ours.tokenize_messages(messages("turns"))


@pytest.mark.parametrize("mark", [plain, marked])
@pytest.mark.parametrize(
    "unmasked, expected",
    [
        ((1, 3, 5), "42<|im_end|>\nlazy<|im_end|>\ny<|im_end|>\n"),
        ((5,), "y<|im_end|>\n"),
        ((1, 3), "42<|im_end|>\nlazy<|im_end|>\n"),
        ((), ""),
        ((2, 3), "<|im_start|>user\nthe dog<|im_end|>\n<|im_start|>assistant\nlazy<|im_end|>\n"),
        ((0, 5), "<|im_start|>user\nwhat?<|im_end|>\ny<|im_end|>\n"),
    ],
)
def test_a_message_has_a_loss_unless_it_is_masked(mark, unmasked, expected, tmp_path):
    folder = write_folder(tmp_path, "bytelevel", mark(TEMPLATES["chatml"]))
    conversation = [Message(m.role, m.text_content, i not in unmasked) for i, m in enumerate(messages("turns"))]
    assert shown(load_tokenizer(folder, prompt_template="chat_template"), conversation) == expected


@pytest.mark.parametrize("mark", [plain, marked])
def test_turns_that_are_cut_off_are_not_written_again(mark, tmp_path, monkeypatch):
    """Each answer takes a rendering of all turns before it: in a long conversation, only the turns that are kept."""
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", mark(TEMPLATES["chatml"])), 60, "chat_template")
    rendered, render = [], ChatTemplate.write
    monkeypatch.setattr(
        ChatTemplate, "write", lambda self, turns, *rest: rendered.append(len(turns)) or render(self, turns, *rest)
    )
    samples, again = [], []
    for count in (20, 40):
        rendered.clear()
        turns = [Message(role, "the fox", masked=role == "user") for role in ("user", "assistant") * count]
        samples.append(tokenizer({"messages": turns}))
        again.append([number for number in rendered if number < len(turns)])
    assert samples[0] == samples[1] and not all(samples[0]["mask"][30:])
    assert again[0] == again[1] and sum(again[0]) < 50


def test_the_search_for_marks_ends_when_two_are_found():
    class Text(str):
        looks = 0

        def __contains__(self, character):
            Text.looks += 1
            return super().__contains__(character)

    template = ChatTemplate(marked(TEMPLATES["chatml"]), {})
    turns = [Message("user", "a", masked=True), Message("assistant", "\ue000")]
    answers = Answers(template, turns, {})
    answers.text = Text(answers.text)
    [(start, end)] = answers.blocks()
    assert (answers.text[start:end], Text.looks) == ("\ue000<|im_end|>\n", 3)


def test_an_answer_that_the_prompt_begins_is_gone_on_with(tmp_path):
    template = ChatTemplate(plain(TEMPLATES["zephyr"]), {"eos_token": "</s>"})
    assert (
        template.prompt([Message("user", "Q"), Message("assistant", "Sure:")]) == "<|user|>\nQ</s><|assistant|>\nSure:"
    )


def test_of_several_templates_it_is_the_one_that_transformers_takes(tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}1"}]
    write_folder(tmp_path, "bytelevel", chat_template=named)
    for expected in ("the1", "the2"):
        theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
            [{"role": "user", "content": "the"}], tokenize=False
        )
        ours = load_tokenizer(tmp_path, prompt_template="chat_template").prompt_template
        assert ours.render([Message("user", "the")]) == theirs == expected
        (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}2")


def test_a_template_that_is_a_link_to_a_file_elsewhere_is_not_read(tmp_path):
    """Its text would be in each checkpoint."""
    (tmp_path / "secret").write_text("secret")
    folder = write_folder(tmp_path / "base", "bytelevel")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(
        DataError, match=r"chat_template\.jinja is a link to .*secret, outside of its folder; put a copy"
    ):
        load_tokenizer(folder, prompt_template="chat_template")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ cycler.__init__.__globals__.os.system('touch executed') }}",
        "{{ self.__init__.__globals__ }}",
        "{% include 'tokenizer.json' %}",
        "{{ range(10**9) | list }}",
    ],
)
def test_a_template_cannot_reach_what_it_is_not_given(source, folder):
    """A one-line error, or nothing, which is the sandbox's answer to hidden attributes."""
    try:
        assert ChatTemplate(source, {}).render([Message("user", "a")]) == ""
    except DataError as error:
        assert "\n" not in str(error)
    assert not (folder / "executed").exists()


def test_templates_have_what_transformers_gives_them(tmp_path):
    source = (
        "{{ {'é': ['<', 1]} | tojson }}{{ [1] | tojson(indent=2) }}{{ strftime_now('%Y') }}{% for i in [1, 2] %}"
        "{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{% set ns = namespace(a=0) %}{% set ns.a = 5 %}"
        "{{ ns.a }}{{ bos_token }}{{ pad_token }}{{ tools is none }}{{ nothing }}"
    )
    folder = write_folder(tmp_path, "metaspace", source)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(dicts(messages("system")), tokenize=False)
    assert load_tokenizer(folder, prompt_template="chat_template").prompt_template.render(messages("system")) == theirs


@pytest.mark.parametrize(
    "source, said",
    [
        ("{{ raise_exception('only\nuser') }}", "t: only user"),
        ("{{ messages.append(1) }}", "t: .*'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "t: .*unsafe"),
        ("{{ range(10000000) | list }}", "t: .*Range too big"),
        ("{{ messages[7].role + 1 }}", "t: .*has no element 7"),
        ("{{ 1 // 0 }}", "t: integer "),
    ],
)
def test_an_error_in_a_template_is_one_line(source, said):
    with pytest.raises(DataError, match=said) as error:
        ChatTemplate(source, {}, "t").render([Message("user", "a")])
    assert "\n" not in str(error.value)


# --- what templates read besides role and content ---


def call(name, arguments, id="abcdefghi"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


ADD = {"type": "function", "function": {"name": "add", "description": "é", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "what is 1 + 1?"}
SAY = {"role": "assistant", "content": "the answer is 2."}
ADDS = {"role": "assistant", "content": "", "tool_calls": [call("add", {"a": 1, "b": ["é", None]})]}
ADDED = {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "2"}
TWO = [call("add", {}), call("add", {"a": 2}, "bcdefghij")]
ROWS = {
    "no tools": {"messages": [ASK, SAY]},
    "a call": {"messages": [ASK, ADDS, ADDED, SAY], "tools": [ADD]},
    "a call at the end": {"messages": [ASK, ADDS], "tools": [ADD, ADD]},
    "a call with a text": {"messages": [ASK, ADDS | {"content": "wait"}, ADDED, SAY], "tools": [ADD]},
    "no content": {"messages": [ASK, {k: v for k, v in ADDS.items() if k != "content"}, ADDED, SAY]},
    "null for content": {"messages": [ASK, ADDS | {"content": None, "refusal": None}, ADDED, SAY]},
    "two calls": {"messages": [ASK, ADDS | {"tool_calls": TWO}, ADDED, ADDED | {"tool_call_id": "bcdefghij"}, SAY]},
    "arguments as text": {"messages": [ASK, ADDS | {"tool_calls": [call("add", '{"a": 1}')]}, ADDED, SAY]},
    "no arguments, as text": {"messages": [ASK, ADDS | {"tool_calls": [call("add", "{}")]}, ADDED, SAY]},
    "a call without a function": {
        "messages": [ASK, ADDS | {"tool_calls": [{"name": "add", "arguments": {}}]}, ADDED, SAY]
    },
    "an object as the answer": {"messages": [ASK, ADDS, ADDED | {"content": {"sum": 2}}, SAY], "tools": [ADD]},
    "a list as the answer": {"messages": [ASK, ADDS, ADDED | {"content": [2, "x"]}, SAY]},
    "an empty list of tools": {"messages": [ASK, SAY], "tools": []},
    "null everywhere": {
        "messages": [ASK | {"tool_calls": None, "name": None}, SAY | {"tool_calls": None}],
        "tools": None,
    },
    "names": {"messages": [ASK | {"name": "Ann"}, SAY | {"name": "Bot"}, ASK | {"name": "Bob"}, SAY]},
    "system and tools": {
        "messages": [{"role": "system", "content": "be brief"}, ASK, ADDS, ADDED, SAY],
        "tools": [ADD],
    },
    "thoughts": {"messages": [ASK, SAY | {"reasoning_content": "the dog"}]},
    "thoughts by another name": {"messages": [ASK, SAY | {"thinking": "the dog"}]},
    "a variable": {"messages": [ASK, SAY], "chat_template_kwargs": {"date_string": "1 Apr 2025"}},
    "parts": {
        "messages": [ASK | {"content": [{"type": "text", "text": " what "}, {"type": "text", "text": "is"}]}, SAY]
    },
    "two questions with tools": {
        "messages": [ASK, ADDS, ADDED, SAY, ASK | {"content": "and 2 + 2?"}, SAY],
        "tools": [ADD],
    },
    "an answer first": {"messages": [SAY, ASK, SAY]},
    "developer": {"messages": [{"role": "developer", "content": "be brief"}, ASK, SAY]},
}
REFUSED = {
    **{
        (style, row): "is JSON text, which .* writes in quotes"
        for style in ("llama3", "hermes", "mistral")
        for row in ROWS
        if "as text" in row
    },
    ("mistral", "two questions with tools"): r"writes messages\[1\] differently once more turns follow",
}
"""Inputs that transformers takes and this library refuses, with the messages."""
OTHERWISE = {(style, row) for style in TOOL_TEMPLATES for row in ("parts", "developer")} - {
    *(("llama3", "developer"), ("mistral", "developer"), ("parts", "parts"))
}
"""A list is joined if the template takes none, and an unknown role becomes system."""


def as_transformers_has_it(tokenizer, row, template, **options):
    return by_transformers(
        tokenizer, row["messages"], template, tools=row.get("tools"), **row.get("chat_template_kwargs", {}), **options
    )


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A tokenizer of this library, one with the answers marked, and one of transformers, by the style."""

    @functools.cache
    def load(style):
        folders = [tmp_path_factory.mktemp(style) for _ in range(2)]
        for folder, mark in zip(folders, (plain, marked), strict=True):
            write_folder(folder, "bytelevel", mark(TOOL_TEMPLATES[style]))
        found, marks = (load_tokenizer(folder, prompt_template="chat_template") for folder in folders)
        return found, marks, AutoTokenizer.from_pretrained(folders[0])

    return load


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("style", TOOL_TEMPLATES)
def test_a_row_gives_the_tokens_and_mask_of_transformers_or_is_refused_by_name(style, row, tools):
    found, marks, theirs = tools(style)
    given = {"tools": ROWS[row].get("tools"), **ROWS[row].get("chat_template_kwargs", {})}
    try:
        expected = by_transformers(theirs, ROWS[row]["messages"], marked(TOOL_TEMPLATES[style]), **given)
    except (jinja2.TemplateError, TypeError):
        expected = None
    for ours in (found, marks):
        refused = REFUSED.get((style, row))
        if expected is None and (style, row) not in OTHERWISE or (refused and (ours is found or "quotes" in refused)):
            with pytest.raises(DataError, match=refused):
                ours(OpenAIToMessages()(ROWS[row]))
            continue
        made = ours(OpenAIToMessages()(ROWS[row]))
        assert (made["tokens"], made["mask"]) == expected or (style, row) in OTHERWISE


@pytest.mark.parametrize("style", TOOL_TEMPLATES)
def test_what_the_template_does_not_take_is_joined_or_system(style, tools):
    ours, *_ = tools(style)
    for row, turn in (
        ("parts", ASK | {"content": " what is"}),
        ("developer", {"role": "system", "content": "be brief"}),
    ):
        if (style, row) in OTHERWISE:
            plainly = {"messages": [turn, *ROWS[row]["messages"][1:]]}
            assert ours(OpenAIToMessages()(ROWS[row]))["tokens"] == ours(OpenAIToMessages()(plainly))["tokens"]


def test_what_a_template_reads_is_not_noted(tools, log_lines):
    row = ROWS["a call"] | {"chat_template_kwargs": {"date_string": "x"}, "id": 3}
    rows = Rows("x", [row, ROWS["thoughts"]], "x:{}".format)
    unread = {
        "llama3": "'name' of a turn (1 row), 'reasoning_content' of a turn (1 row), 'tool_call_id' of a turn (1 row)",
        "qwen": "'date_string' of column 'chat_template_kwargs' (1 row), 'tool_call_id' of a turn (1 row)",
    }
    for style, said in unread.items():
        SFTDataset(rows, OpenAIToMessages(), tools(style)[0])
        if style == "llama3":
            said = said.replace("'name' of a turn (1 row), ", "")  # it names a function's
        assert log_lines[-1] == f"x: not read: {said}, column 'id' (1 row)"


@pytest.mark.parametrize("in_files", [False, True])
def test_a_template_of_its_own_for_tools(in_files, tmp_path):
    sources = {"default": plain(TEMPLATES["chatml"]), "tool_use": plain(TOOL_TEMPLATES["hermes"])}
    named = [{"name": name, "template": source} for name, source in sources.items()]
    folder = write_folder(tmp_path, "bytelevel", chat_template=None if in_files else named)
    if in_files:
        (folder / "chat_template.jinja").write_text(sources["default"])
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/tool_use.jinja").write_text(sources["tool_use"])
    ours, theirs = load_tokenizer(folder, prompt_template="chat_template"), AutoTokenizer.from_pretrained(folder)
    for row in ("a call", "no tools", "an empty list of tools"):
        expected = theirs.apply_chat_template(ROWS[row]["messages"], tools=ROWS[row].get("tools"), return_dict=False)
        assert ours(OpenAIToMessages()(ROWS[row]))["tokens"] == expected
    assert ours.reads("tools") and ours.reads("name")


def test_variables_of_the_config_are_those_of_every_conversation(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(TOOL_TEMPLATES["qwen"]))
    ours = load_tokenizer(folder, prompt_template="chat_template", chat_template_kwargs={"enable_thinking": False})
    asked = [Message("user", "what?")]
    thought = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert ours.prompt_template.prompt(asked).endswith(thought)
    assert not ours.prompt_template.prompt(asked, enable_thinking=True).endswith(thought)
    for options, said in (
        ({"enable_thinkng": False}, "chat_template takes no enable_thinkng; leave it out"),
        ({"messages": []}, "takes no messages; leave it out"),
        ({"strftime_now": "2025-01-31"}, "takes no strftime_now; leave it out"),
    ):
        with pytest.raises(ConfigError, match=rf"^tokenizer.chat_template_kwargs: .* ?{said}"):
            load_tokenizer(folder, prompt_template="chat_template", chat_template_kwargs=options)
    with pytest.raises(ConfigError, match="a text template takes no enable_thinking; leave it out"):
        load_tokenizer(folder, chat_template_kwargs={"enable_thinking": False})


def test_the_date_is_the_clocks_the_runs_or_the_configs(tmp_path):
    source = "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = write_folder(tmp_path, "bytelevel", source)

    def today(run=None, **options):
        tokenizer = load_tokenizer(folder, prompt_template="chat_template", chat_template_kwargs=options)
        if run:
            fix_date(tokenizer, run)
        return pickle.loads(pickle.dumps(tokenizer)).prompt_template.render([Message("user", "")])

    assert today() == datetime.now().strftime("%d %B %Y")
    assert today("2024-02-29") == "29 February 2024"
    assert today("2024-02-29", strftime_now="2025-01-31") == today(strftime_now="2025-01-31") == "31 January 2025"
    with pytest.raises(ConfigError, match="strftime_now='yesterday' is not a date such as 2025-01-31"):
        today(strftime_now="yesterday")


@pytest.mark.parametrize("style", ["llama3", "chatml", "gemma", "zephyr"])
def test_an_answer_that_opens_the_conversation_is_in_the_loss_from_its_first_word(style, tmp_path):
    """Even if the template cannot write a conversation without a turn."""
    source = TEMPLATES[style].replace("{% for m in messages %}", "{{ messages[0].content[:0] }}{% for m in messages %}")
    folder = write_folder(tmp_path, "bytelevel", plain(source))
    ours, theirs = load_tokenizer(folder, prompt_template="chat_template"), AutoTokenizer.from_pretrained(folder)
    conversation = [Message("assistant", "the answer"), Message("user", "what?"), Message("assistant", "42")]
    assert ours.tokenize_messages(conversation) == by_transformers(theirs, dicts(conversation), marked(source))
