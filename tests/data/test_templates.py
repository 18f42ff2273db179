import pytest

from torchtune_lite.data import Llama2ChatTemplate, Message, MistralChatTemplate, PromptTemplate, SentencePieceTokenizer
from torchtune_lite.data.templates import endings, get_prompt_template, opened
from torchtune_lite.errors import ConfigError, DataError

CHAT = [
    Message("system", "S", masked=True),
    Message("user", "Q", masked=True),
    Message("assistant", "A"),
    Message("user", "R", masked=True),
    Message("assistant", ""),
]


def written(template, messages=CHAT):
    return [(message.role, message.text_content, message.masked) for message in template(messages)]


def test_a_mapping_wraps_the_roles_it_names():
    template = get_prompt_template({"user": ["Q: ", "\nA: "], "assistant": ["", "#"]})
    assert written(template, CHAT[:3]) == [
        ("system", "S", True),
        ("user", "Q: Q\nA: ", True),
        ("assistant", "A#", False),
    ]
    assert CHAT[1].text_content == "Q"  # the messages themselves stay as they are


def test_llama2_puts_the_system_prompt_into_each_user_turn():
    system = "<<SYS>>\nS\n<</SYS>>\n\n"
    assert written(Llama2ChatTemplate()) == [
        ("user", f"[INST] {system}Q [/INST] ", True),
        ("assistant", "A", False),
        ("user", f"[INST] {system}R [/INST] ", True),
        ("assistant", "", False),
    ]


def test_chatml_leaves_an_empty_last_answer_open():
    template = get_prompt_template("torchtune_lite.data.ChatMLTemplate")
    texts = [text for _, text, _ in written(template)]
    assert texts[1:3] == ["<|im_start|>user\nQ<|im_end|>\n", "<|im_start|>assistant\nA<|im_end|>\n"]
    assert texts[-1] == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "path, question",
    [
        ("torchtune_lite.data.QuestionAnswerTemplate", "Question: Q\n\nAnswer: "),
        ("torchtune.data.SummarizeTemplate", "Summarize this dialogue:\nQ\n---\nSummary:\n"),
        ("torchtune.data.GrammarErrorCorrectionTemplate", "Correct this to standard English: Q\n---\nCorrected: "),
        ("torchtune.models.llama2.Llama2ChatTemplate", "[INST] Q [/INST] "),
        ("torchtune_lite.data.MistralChatTemplate", "[INST] Q [/INST] "),
    ],
)
def test_a_dotted_path_names_a_template(path, question):
    assert written(get_prompt_template(path), CHAT[1:3]) == [("user", question, True), ("assistant", "A", False)]


def test_mistral_has_no_place_for_a_system_prompt():
    with pytest.raises(DataError, match="no place for a system prompt; put it into the first user message"):
        MistralChatTemplate()(CHAT)


def test_null_is_no_template_and_an_object_is_itself():
    template = PromptTemplate({})
    assert get_prompt_template(None) is None
    assert get_prompt_template(template) is template


@pytest.mark.parametrize(
    "given, message",
    [
        ("torchtune_lite.data.QuestionAnswerTemplat", "QuestionAnswerTemplate"),
        ({"usr": ["", ""]}, "prompt_template.usr: the roles are system, user"),
        ({"user": "Q: "}, r"prompt_template.user must be \[prefix, suffix\]"),
        ({"user": ["Q: "]}, r"prompt_template.user must be \[prefix, suffix\]"),
        ({"user": None}, r"prompt_template.user must be \[prefix, suffix\]"),
    ],
)
def test_says_what_is_wrong_with_a_template(given, message):
    with pytest.raises(ConfigError, match=message):
        get_prompt_template(given)


def test_the_tokenizer_encodes_prefix_text_and_suffix_each_by_itself(char_model, spell):
    tokenizer = SentencePieceTokenizer(char_model, prompt_template=Llama2ChatTemplate())
    tokens, mask = tokenizer.tokenize_messages(CHAT[:3])
    assert spell(tokens) == "⟨▁[INST]▁<<SYS>>\n▁S▁\n<</SYS>>\n\n▁Q▁▁[/INST]▁A⟩"
    assert mask == [True] * (len(tokens) - 3) + [False] * 3


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ({"user": ["Q: ", "\nA: "]}, None, ""),
        ({"assistant": ["A: ", ""]}, "A: ", ""),
        ({"assistant": ["", " #\n"]}, None, " #"),
        ("torchtune_lite.data.ChatMLTemplate", "<|im_start|>assistant\n", "<|im_end|>"),
        ("torchtune_lite.models.llama2.Llama2ChatTemplate", None, ""),
        (lambda messages: [Message(turn.role, f"{turn.role}: {turn.text_content}") for turn in messages], None, ""),
    ],
)
def test_a_prompt_goes_on_to_where_the_answer_begins(template, before, after):
    template = template if callable(template) else get_prompt_template(template)
    turns = opened(CHAT[:2], template)
    assert turns[: 2 if before else None] == template(CHAT[:2])
    assert [(turn.role, turn.text_content) for turn in turns[len(template(CHAT[:2])) :]] == (
        [("assistant", before)] if before else []
    )
    assert opened(CHAT[:3], template) == template(CHAT[:3])  # an answer that is begun is gone on with
    assert endings(template) == ((after,) if after else ())


def test_without_a_template_nothing_is_written_around():
    assert opened(CHAT[:2], None) == CHAT[:2] and endings(None) == ()
