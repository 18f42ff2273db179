import jinja2
import pytest
from transformers import AutoTokenizer

from tests.data.chats import TEMPLATES, marked, plain, write_folder
from torchtune_lite.data import ChatTemplate, Message, load_tokenizer
from torchtune_lite.errors import DataError

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


def by_transformers(tokenizer, conversation, template):
    """Tokens and mask of a template whose assistant text is marked."""
    made = tokenizer.apply_chat_template(
        conversation,
        chat_template=template,
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
    """The template as it is found gives the mask that transformers finds by the marks in another one."""
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


def test_marked_answers_are_found_also_where_earlier_turns_change(tmp_path):
    """A template that leaves out earlier thoughts: the marks tell what has a loss, prefixes cannot."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}⟦{% if loop.last %}"
        "{{ '[thought]' }}{% endif %}{{ m.content + '<|im_end|>' }}⟧{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    folder = write_folder(tmp_path, "bytelevel", marked(source))
    ours = load_tokenizer(folder, prompt_template="chat_template")
    expected = by_transformers(AutoTokenizer.from_pretrained(folder), dicts(messages("turns")), marked(source))
    assert ours.tokenize_messages(messages("turns")) == expected
    write_folder(tmp_path, "bytelevel", plain(source))
    ours = load_tokenizer(folder, prompt_template="chat_template")
    with pytest.raises(DataError, match=r"writes messages\[1\] differently once more turns follow.*generation"):
        ours.tokenize_messages(messages("turns"))
    assert shown(ours, messages("one turn")) == "[thought]the answer is 42.<|im_end|>"


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
    """Each answer takes a rendering of all turns before it: of a long conversation, only those that are kept."""
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", mark(TEMPLATES["chatml"])), 60, "chat_template")
    rendered, render = [], ChatTemplate._render
    monkeypatch.setattr(
        ChatTemplate, "_render", lambda self, turns, *rest: rendered.append(len(turns)) or render(self, turns, *rest)
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
    text = Text(template.render(turns))
    [(start, end)] = template._marked(turns, text, [True])
    assert (text[start:end], Text.looks) == ("\ue000<|im_end|>\n", 3)


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
        ("{% for %}", "t is no Jinja template: line 1"),
    ],
)
def test_an_error_in_a_template_is_one_line(source, said):
    with pytest.raises(DataError, match=said) as error:
        ChatTemplate(source, {}, "t").render([Message("user", "a")])
    assert "\n" not in str(error.value)
