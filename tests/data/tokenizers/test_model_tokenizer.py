import logging
import random

import pytest

from tests.data.chats import TEMPLATES, plain, write_folder
from torchtune_lite.data import Llama2ChatTemplate, Message, SentencePieceTokenizer, load_tokenizer
from torchtune_lite.errors import ConfigError


def turns(*texts):
    """A conversation of a user, masked, and an assistant in turn."""
    return [Message("assistant" if i % 2 else "user", text, masked=i % 2 == 0) for i, text in enumerate(texts)]


def parts(*texts):
    return [{"type": "text", "content": text} for text in texts]


@pytest.mark.parametrize(
    "messages, tokens, mask",
    [
        (turns("hi", "yo"), "⟨▁hiyo⟩", "xxxx___"),  # no space of its own before the answer
        (turns("hi ", "yo"), "⟨▁hi▁yo⟩", "xxxx____"),  # the space at the end moves to the answer
        (turns("hi\n", " yo "), "⟨▁hi\n▁yo⟩", "xxxxx____"),
        (turns("a", "b", "c", "d"), "⟨▁ab⟩⟨▁cd⟩", "xxx__xxx__"),  # every exchange starts and ends by itself
        (turns("a", "b", "c"), "⟨▁ab⟩⟨▁c", "xxx__xxx"),
        (turns("a", ""), "⟨▁a⟩", "xxx_"),
        ([Message("system", "s", masked=True), *turns("u", "a")], "⟨▁sua⟩", "xxxx__"),
        ([Message("user", parts("a ", "b")), Message("assistant", parts("c", "d"))], "⟨▁a▁bcd⟩", "xxxxx___"),
    ],
)
def test_tokenizes_messages_with_their_masks(char_model, spell, messages, tokens, mask):
    ids, masked = SentencePieceTokenizer(char_model).tokenize_messages(messages)
    assert spell(ids) == tokens
    assert "".join("x" if m else "_" for m in masked) == mask


def test_a_prompt_stays_open(char_model, spell):
    tokenizer = SentencePieceTokenizer(char_model)
    assert spell(tokenizer.tokenize_messages(turns("hi", ""), add_eos=False)[0]) == "⟨▁hi"
    assert spell(tokenizer({"messages": turns("hi")}, inference=True)["tokens"]) == "⟨▁hi"


@pytest.mark.parametrize(
    "max_seq_len, tokens, in_torchtune, mask",
    [
        (None, "⟨▁ab⟩⟨▁cd⟩", "⟨▁ab⟩⟨▁cd⟩", "xxx__xxx__"),
        (10, "⟨▁ab⟩⟨▁cd⟩", "⟨▁ab⟩⟨▁cd⟩", "xxx__xxx__"),
        (9, "⟨▁ab⟩⟨▁cd", "⟨▁ab⟩⟨▁c⟩", "xxx__xxx_"),
        (7, "⟨▁ab⟩⟨▁", "⟨▁ab⟩⟨⟩", "xxx__xx"),
        (5, "⟨▁ab⟩", "⟨▁ab⟩", "xxx__"),
        (4, "⟨▁ab", "⟨▁a⟩", "xxx_"),
        (2, "⟨▁", "⟨⟩", "xx"),
    ],
)
def test_what_is_cut_goes_on_unless_it_is_told_to_end(char_model, spell, max_seq_len, tokens, in_torchtune, mask):
    for add_eos_when_cut, expected in ((False, tokens), (True, in_torchtune)):
        tokenizer = SentencePieceTokenizer(char_model, max_seq_len, add_eos_when_cut=add_eos_when_cut)
        sample = tokenizer({"messages": turns("a", "b", "c", "d"), "id": 7})
        assert spell(sample["tokens"]) == expected
        assert "".join("x" if m else "_" for m in sample["mask"]) == mask
        assert sample["truncated"] is (max_seq_len is not None and max_seq_len < 10)
        assert sample["id"] == 7


def test_refuses_a_length_without_room_for_a_label(char_model):
    with pytest.raises(ConfigError, match="max_seq_len=1"):
        SentencePieceTokenizer(char_model, max_seq_len=1)


@pytest.mark.parametrize("template", [None, Llama2ChatTemplate()])
def test_what_is_surely_whole_is_not_cut_and_has_a_label(char_model, template):
    rng, found = random.Random(0), 0
    for _ in range(500):
        texts = ["".join(rng.choices("ab \né市𝄞", k=rng.randrange(8))) for _ in range(rng.choice((2, 2, 4)))]
        sample = {"messages": turns(*texts)}
        tokenizer = SentencePieceTokenizer(char_model, rng.choice((None, 8, 32, 64, 128)), template)
        made = tokenizer(sample)
        if tokenizer.surely_whole(sample):
            found += 1
            assert not made["truncated"] and not all(made["mask"][1:])
            assert len(made["tokens"]) <= (tokenizer.max_seq_len or 1000)
    assert 100 < found < 400


def test_a_sample_without_an_answer_in_the_loss_is_never_sure(char_model):
    tokenizer = SentencePieceTokenizer(char_model)
    assert tokenizer.surely_whole({"messages": turns("a", "b")})
    assert not tokenizer.surely_whole({"messages": turns("a")})
    assert not tokenizer.surely_whole({"messages": [Message("assistant", "b", masked=True)]})


@pytest.mark.parametrize("template", [None, Llama2ChatTemplate()])
def test_a_prompt_is_how_the_conversation_starts(char_model, template):
    """Earlier answers end with EOS there, too."""
    tokenizer = SentencePieceTokenizer(char_model, prompt_template=template)
    conversation = turns("a", "b", "c", "d")
    prompt, _ = tokenizer.tokenize_messages(conversation[:3], add_eos=False)
    assert prompt.count(tokenizer.eos_id) == 1
    assert tokenizer.tokenize_messages(conversation)[0][: len(prompt)] == prompt


@pytest.mark.parametrize("max_seq_len", [None, 25, 24, 10])
def test_a_chat_that_is_cut_is_how_the_whole_one_starts(tmp_path, max_seq_len):
    folder = write_folder(tmp_path, "bytelevel", plain(TEMPLATES["chatml"]))
    whole, whole_mask = load_tokenizer(folder, prompt_template="chat_template").tokenize_messages(turns("a", "b" * 12))
    assert len(whole) == 25
    for add_eos_when_cut in (False, True):
        tokenizer = load_tokenizer(folder, max_seq_len, "chat_template", add_eos_when_cut=add_eos_when_cut)
        sample, is_cut = tokenizer({"messages": turns("a", "b" * 12)}), max_seq_len in (24, 10)
        ends = add_eos_when_cut and is_cut
        assert sample["tokens"] == whole[:max_seq_len][: -1 if ends else None] + [tokenizer.eos_id] * ends
        assert sample["mask"] == whole_mask[:max_seq_len]
        assert sample["truncated"] is is_cut
        assert not tokenizer.surely_whole({"messages": turns("a", "b")})


def test_stops_where_the_template_ends_a_turn_and_warns_where_it_does_not(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torchtune_lite"), "propagate", True)
    folder = write_folder(tmp_path, "bytelevel", plain(TEMPLATES["gemma"]))
    for max_seq_len in (None, 2):
        tokenizer = load_tokenizer(folder, max_seq_len, "chat_template")
        assert tokenizer.stop_tokens == [tokenizer.eos_id, tokenizer.special_tokens["<end_of_turn>"]]
    assert not caplog.text
    load_tokenizer(
        write_folder(tmp_path, "bytelevel", "{{ messages[0].content }}{{ messages[1].content }}"), None, None
    )
    assert not caplog.text
    for source in ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}",):
        load_tokenizer(write_folder(tmp_path, "bytelevel", source), None, "chat_template")
    assert "ends an answer with no special token" in caplog.text


GLUED = [
    (None, turns("Why?", "So."), "Why?So."),
    (None, turns("Why? ", "So."), None),
    (None, turns("Why?", "\nSo."), None),
    (None, [Message("system", "S"), *turns("Why? ", "So.")], "SWhy? "),
    ({"user": ["Q: ", ""]}, turns("Why?", "So."), "Why?So."),
    ({"user": ["<q>", "</q>"], "assistant": ["<a>", "</a>"]}, turns("Why?", "So."), None),
    ({"user": ["", "\n"]}, turns("Why?", "So.", "And?", "No."), None),
    ("torchtune_lite.data.Llama2ChatTemplate", turns("Why?", "So."), None),
    ("torchtune_lite.data.ChatMLTemplate", turns("Why?", "So."), None),
]


@pytest.mark.parametrize("template, messages, glued", GLUED)
def test_a_question_and_its_answer_that_stand_side_by_side_are_named_once(
    char_model, log_lines, template, messages, glued
):
    tokenizer = SentencePieceTokenizer(char_model, prompt_template=template)
    for _ in range(3):
        tokenizer({"messages": messages})
    assert [line for line in log_lines if "nothing stands between a question and its answer" in line] == log_lines
    assert len(log_lines) == (glued is not None) and all(repr(glued) in line for line in log_lines)


TOOLS = [*turns("hi", "a"), Message("tool", "b"), Message("ipython", "c"), Message("assistant", "d")]


@pytest.mark.parametrize(
    "template, tokens",
    [
        (None, "⟨▁hia⟩⟨▁b\nc\nd⟩"),
        ({"tool": ["{", "}"]}, "⟨▁hia⟩⟨▁{▁b▁}c\nd⟩"),
        (Llama2ChatTemplate(), "⟨▁[INST]▁hi▁▁[/INST]▁a⟩⟨▁b\nc\nd⟩"),
    ],
)
def test_what_a_tool_answered_ends_its_line(char_model, spell, template, tokens):
    tokenizer = SentencePieceTokenizer(char_model, prompt_template=template)
    ids, mask = tokenizer.tokenize_messages(TOOLS)
    assert spell(ids) == tokens
    assert [spell([i]) for i, masked in zip(ids, mask, strict=True) if not masked][-2:] == ["d", "⟩"]
