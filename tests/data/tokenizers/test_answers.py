import jinja2
import pytest
from transformers import AutoTokenizer

from tests.data.chats import marked, plain, write_folder
from tests.data.lookalikes import LOOKALIKES, MODES, MODES_MARKED, THINKS
from tests.data.tokenizers.test_chat_template import by_transformers
from torchtune_lite.data import ChatTemplate, Message, OpenAIToMessages, fix_date, load_tokenizer
from torchtune_lite.errors import ConfigError, DataError

DATE = {"date_string": "26 Jul 2024"}


def said(*texts, system=None):
    """A conversation of questions and answers."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + turns


CHATS = {
    "one answer": said("what is it?", "the answer is 42."),
    "three answers": said("what?", "42", "the dog", "lazy", "x", "y"),
    "a system prompt": said("what?", "42", "the fox", "jumps", system="be brief"),
    "spaces": said("  the  fox ", " two  spaces\n\nand lines", "\n", "  é 市"),
    "thoughts in the text": said("what?", "<think>\nthe fox\n</think>\n\n42", "x", "<think>\nthe dog\n</think>\n\ny"),
    "thoughts apart": [
        *said("what?", "42")[:1],
        {"role": "assistant", "content": "42", "reasoning_content": "the fox"},
        *said("x", "y"),
    ],
    "no thinking": said("what?", "42", "x", "y", system="be brief /no_think"),
}
CHANGED = {"qwen3": set(CHATS) - {"one answer"}, "mistral_v0_3": {"a system prompt", "no thinking"}}


def samples(tokenizer, chat, given=DATE):
    """The samples made from a conversation, as (turns, tokens, mask)."""
    row = {"messages": chat, "chat_template_kwargs": given}
    made = tokenizer.expanded(OpenAIToMessages()(row))
    tokenized = [tokenizer(sample) for sample in made]
    return [
        (len(sample["messages"]), each["tokens"], each["mask"]) for sample, each in zip(made, tokenized, strict=True)
    ]


def only_last(mask):
    """Leave the loss on the last run of tokens that have one."""
    end = max(i for i, masked in enumerate(mask) if not masked)
    start = max([i for i in range(end) if mask[i]], default=-1) + 1
    return [masked or i < start for i, masked in enumerate(mask)]


@pytest.mark.parametrize("kind", ["bytelevel", "spm"])
@pytest.mark.parametrize("style", LOOKALIKES)
def test_samples_are_those_of_transformers_each_as_the_model_is_asked(style, kind, tmp_path):
    """One sample for the whole if nothing changes; otherwise one for each answer, ending with it."""
    folder = write_folder(tmp_path, kind, plain(LOOKALIKES[style]))
    ours, theirs = load_tokenizer(folder, prompt_template="chat_template"), AutoTokenizer.from_pretrained(folder)
    refused = 0
    for name, chat in CHATS.items():
        try:
            whole = by_transformers(theirs, chat, marked(LOOKALIKES[style]), **DATE)
        except jinja2.TemplateError:
            refused += 1
            with pytest.raises(DataError):
                samples(ours, chat)
            continue
        if name not in CHANGED.get(style, ()):
            assert samples(ours, chat) == [(len(chat), *whole)], name
            continue
        expected = []
        for i, turn in enumerate(chat):
            if turn["role"] == "assistant":
                tokens, mask = by_transformers(theirs, chat[: i + 1], marked(LOOKALIKES[style]), **DATE)
                expected.append((i + 1, tokens, only_last(mask)))
                prompt = theirs.apply_chat_template(chat[:i], add_generation_prompt=True, return_dict=False, **DATE)
                assert tokens[: len(prompt)] == prompt
        assert samples(ours, chat) == expected, name
    assert refused == (2 if style == "gemma" else 0)


def shown(tokenizer, chat, **given):
    """The text of the tokens in the loss, of each sample."""
    return [
        tokenizer.tokenizer.decode([t for t, m in zip(tokens, mask, strict=True) if not m], False)
        for _, tokens, mask in samples(tokenizer, chat, given)
    ]


THOUGHT = CHATS["thoughts apart"][:2]


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_thoughts_that_the_template_writes_itself_have_no_loss(options, tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(THINKS))
    tokenizer = load_tokenizer(folder, prompt_template="chat_template", chat_template_kwargs=options)
    assert shown(tokenizer, CHATS["three answers"]) == ["42<|im_end|>\n", "lazy<|im_end|>\n", "y<|im_end|>\n"]
    assert shown(tokenizer, THOUGHT, enable_thinking=True) == ["<think>\nthe fox\n</think>\n\n42<|im_end|>\n"]


def test_thoughts_where_the_prompt_asks_for_none_are_refused(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    with pytest.raises(DataError, match=r"asks for messages\[1\] with '.*<think>.*does not begin; change"):
        shown(tokenizer, THOUGHT, enable_thinking=False)


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}])
@pytest.mark.parametrize("chat", ["three answers", "a system prompt", "no thinking"])
def test_marks_around_the_prompt_give_the_labels_of_marks_behind_it(options, chat, tmp_path):
    given = DATE | options
    mine = load_tokenizer(write_folder(tmp_path, "bytelevel", marked(MODES_MARKED)), prompt_template="chat_template")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    [(_, tokens, mask)] = samples(mine, CHATS[chat], given)
    assert (tokens, mask) == by_transformers(theirs, CHATS[chat], marked(MODES), **given)
    assert mask != by_transformers(theirs, CHATS[chat], marked(MODES_MARKED), **given)[1], "of the header as well"


CALLS = [
    {"role": "user", "content": "what?"},
    {"role": "assistant", "content": "ask"},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "it is 42"},
    *said("x", "y"),
]


def test_an_answer_that_goes_on_after_a_tool_is_one_of_its_own(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    assert [count for count, *_ in samples(tokenizer, CALLS)] == [2, 4, 6]
    assert shown(tokenizer, CALLS) == ["ask<|im_end|>\n", "it is 42<|im_end|>\n", "y<|im_end|>\n"]


def test_train_on_last_leaves_one_sample_and_its_last_answer(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(THINKS))
    tokenizer = load_tokenizer(folder, prompt_template="chat_template", train_on="last")
    assert shown(tokenizer, [*CHATS["three answers"], {"role": "user", "content": "bye"}]) == ["y<|im_end|>\n"]
    assert not tokenizer.may_expand
    with pytest.raises(ConfigError, match="tokenizer.train_on='first' is not one of all, last"):
        load_tokenizer(folder, train_on="first")


def test_answers_that_the_data_mask_make_no_sample(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    first, second, *rest = CHATS["three answers"]
    assert shown(tokenizer, [first, second | {"weight": 0}, *rest]) == ["lazy<|im_end|>\n", "y<|im_end|>\n"]


def test_questions_in_the_loss_are_so_in_the_sample_of_their_answer(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    made = tokenizer.expanded(OpenAIToMessages(train_on_input=True)({"messages": CHATS["three answers"]}))
    texts = []
    for sample in made:
        each = tokenizer(sample)
        loss = [t for t, m in zip(each["tokens"], each["mask"], strict=True) if not m]
        texts.append(tokenizer.tokenizer.decode(loss, False))
    prompt = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert texts == [
        f"<|im_start|>user\nwhat?{prompt}42<|im_end|>\n",
        f"the dog{prompt}lazy<|im_end|>\n",
        f"x{prompt}y<|im_end|>\n",
    ]


def test_one_of_the_samples_is_made_alone(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    sample = OpenAIToMessages()({"messages": CHATS["three answers"]})
    every = tokenizer.expanded(sample)
    assert [tokenizer.expanded(sample, i) for i in range(3)] == [[each] for each in every]


def test_the_work_is_linear_in_the_text_of_the_samples(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    assert tokenizer.may_expand
    written, write = [], ChatTemplate.write
    monkeypatch.setattr(
        ChatTemplate, "write", lambda self, turns, *rest: written.append(len(turns)) or write(self, turns, *rest)
    )
    for count in (10, 40):
        written.clear()
        made = samples(tokenizer, said(*["the fox"] * 2 * count), {})
        assert len(made) == count and sum(written) < 3 * sum(turns for turns, *_ in made)


@pytest.mark.parametrize("style", ["llama3_1", "smollm3"])
def test_the_date_is_that_of_the_run(style, tmp_path):
    tokenizer = load_tokenizer(
        write_folder(tmp_path, "bytelevel", plain(LOOKALIKES[style])), prompt_template="chat_template"
    )
    fix_date(tokenizer, "2025-01-31")
    assert "31 Jan 2025" in tokenizer.prompt_template.render([Message("user", "a")])


@pytest.mark.parametrize("style", LOOKALIKES)
def test_what_is_tried_tells_which_templates_may_rewrite(style):
    template = ChatTemplate(plain(LOOKALIKES[style]), {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.may_rewrite == (style in CHANGED)
