import pytest

from torchtune_lite import datasets
from torchtune_lite.data import Message
from torchtune_lite.errors import ConfigError
from torchtune_lite.evaluation.samples import SampleQuestions
from torchtune_lite.generation import generate

CHAT = '{"messages": [%s]}\n'
TURNS = ", ".join(
    f'{{"role": "{role}", "content": "{text}"}}'
    for role, text in (("user", "台北市"), ("assistant", "a b"), ("user", "高雄市"), ("assistant", "x y"))
)


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"input": "台北市 信義區", "output": "市府路 1段"}\n{"input": "高雄市", "output": "永安區"}\n',
        encoding="utf-8",
    )
    (tmp_path / "chat.jsonl").write_text(CHAT % TURNS, encoding="utf-8")
    return tmp_path


def sets(rows, tokenizer):
    return {
        "rows": datasets.instruct_dataset(tokenizer, source=rows / "rows.jsonl"),
        "chat": datasets.chat_dataset(
            tokenizer, source=rows / "chat.jsonl", conversation_column="messages", conversation_style="openai"
        ),
    }


def test_questions_are_asked_as_in_training_and_answered_greedily(rows, base_model, chatting):
    questions = SampleQuestions(sets(rows, chatting), chatting, batch_size=2)
    scores, answers = questions.ask(base_model)
    assert [row["dataset"] for row in answers] == ["rows", "rows", "chat"]
    assert [row["expected"] for row in answers] == ["市府路 1段", "永安區", "x y"]
    assert answers[2]["prompt"].count("[INST]") == 2 and "a b" in answers[2]["prompt"]
    asked = {"messages": [Message("user", "高雄市")]}
    assert questions.samples[1][1].prompt == chatting(asked, inference=True)["tokens"]
    longest = max(len(sample.expected) for _, sample in questions.samples)
    for (_, sample), row in zip(questions.samples, answers, strict=True):
        how = {"max_new_tokens": longest, "stop_tokens": chatting.stop_tokens}
        [tokens] = generate(base_model, [sample.prompt], **how)
        assert row["answer"] == chatting.decode(tokens).strip()
    assert scores["eval_exact_match"] == sum(row["exact_match"] for row in answers) / 3
    assert scores["eval_f1/chat"] == answers[2]["f1"] and len(scores) == 6


def test_the_right_answer_is_right(rows, base_model, chatting, monkeypatch):
    alone = {"": datasets.instruct_dataset(chatting, source=rows / "rows.jsonl")}
    questions = SampleQuestions(alone, chatting, batch_size=2)

    def told(model, tokenizer, prompts, samplings, **how):
        yield 1, "永安區"
        yield 0, "市府路 2段"

    monkeypatch.setattr("torchtune_lite.evaluation.samples.generate_texts", told)
    scores, answers = questions.ask(base_model)
    assert scores == {"eval_exact_match": 0.5, "eval_f1": 0.75}
    assert "dataset" not in answers[0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"packed": True}, "packed samples have no question"), ({"train_on_input": True}, "sample 0 has no question")],
)
def test_samples_without_a_question_are_refused(options, problem, rows, base_tokenizer):
    base_tokenizer.max_seq_len = 64
    try:
        asked = {"": datasets.instruct_dataset(base_tokenizer, source=rows / "rows.jsonl", **options)}
    finally:
        base_tokenizer.max_seq_len = None
    with pytest.raises(ConfigError, match=f"^dataset_eval: {problem}"):
        SampleQuestions(asked, base_tokenizer, 1)


def test_no_data_set_no_question(base_tokenizer):
    assert not SampleQuestions({}, base_tokenizer, 1)
