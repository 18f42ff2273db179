"""Questions from rows to scores; the answers themselves are compared with transformers' in tests/recipes."""

import pytest

from tests.evaluation.conftest import BASE
from torchtune_lite.data import InputOutputToMessages, Llama2ChatTemplate, Message, Rows, load_tokenizer
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.evaluation import questions
from torchtune_lite.evaluation.questions import (
    Question,
    Scoring,
    answer_questions,
    read_questions,
    summary,
    warn_of_problems,
    written,
)
from torchtune_lite.generation import AnswerFile

ROWS = [
    {"input": "台北市", "output": '{"city": "台北市", "n": [1, 2]}'},
    {"input": "高雄市", "output": "no JSON"},
    {"input": "a", "output": '{"city": "a"}'},
    {"input": "b " * 400, "output": "{}"},
    {"question": "c"},
]


def read(base_tokenizer, scoring, **how):
    rows = Rows("rows.jsonl", ROWS, "rows.jsonl:{}".format)
    return read_questions(rows, InputOutputToMessages(), base_tokenizer, scoring, max_seq_len=256, **how)


def test_a_row_that_cannot_be_asked_costs_no_other(base_tokenizer, caplog, tmp_path):
    found = read(base_tokenizer, Scoring("json"))
    assert [each.row for each in found if not each.problem] == [0, 2]
    assert [each.problem for each in found if each.problem] == [
        "rows.jsonl:1: there is no JSON in the text that is expected",
        "rows.jsonl:3: a prompt of 801 tokens leaves no room for an answer: the model's max_seq_len is 256; "
        "shorten the prompt",
        "rows.jsonl:4: missing column 'input' (has: question); set column_map.input to the one you mean",
    ]
    warn_of_problems(found, tmp_path / "result.json")
    assert caplog.text.count("it counts as wrong") == 3
    with pytest.raises(DataError, match="^none of 1 row can be answered: rows.jsonl:1: there is no JSON"):
        warn_of_problems(found[1:2], tmp_path)
    assert len(read(base_tokenizer, Scoring(), max_rows=1)) == 1


def test_json_is_scored_field_by_field():
    scoring = Scoring("json", metrics=["json_fields", "exact_match", "f1"])
    assert scoring.metrics == ["exact_match", "json_fields", "f1"]
    asked = [
        Question(0, expected='{"city": "x", "n": [1, 2]}', answer='It is {"n": [1, 3], "city": "x"}.'),
        Question(1, expected='{"city": "y"}', answer="nothing"),
        Question(2, expected='{"city": "z"}', answer='{"city": "z"}'),
        Question(3, problem="no column"),
    ]
    for question in asked:
        scoring.score(question)
    found = summary(asked, scoring.metrics)
    assert found["exact_match"] == 0.25 and found["json_fields"] == pytest.approx((2 / 3 + 0 + 1 + 0) / 4)
    assert found["fields"] == {"city": pytest.approx(2 / 3), "n.*": 0.5}
    assert asked[0].result()["fields"] == {"city": True, "n.0": True, "n.1": False}
    assert asked[3].result()["problem"] == "no column" and not asked[3].result()["match"]


def test_the_number_of_an_answer_is_compared_with_that_of_the_expected_text():
    scoring, question = Scoring("number"), Question(0, expected="3 * 4 = 12 #### 12", answer="so 12.0")
    scoring.score(question)
    assert question.scores == {"exact_match": 1.0}
    scoring, question = Scoring("regex", r"is (\w)"), Question(0, expected=" B", answer="it is B, surely")
    scoring.score(question)
    assert question.scores == {"exact_match": 1.0}


def test_a_metric_that_there_is_not_is_one_line():
    with pytest.raises(
        ConfigError, match="^metrics: 'json_field' is not one of exact_match.*did you mean 'json_fields'"
    ):
        Scoring(metrics=["json_field"])


def test_a_prompt_is_written_as_its_template_has_it(base_tokenizer):
    turns = [Message("user", "a")]
    assert written(base_tokenizer, turns) == "a"
    chatting = load_tokenizer(BASE, prompt_template=Llama2ChatTemplate())
    assert written(chatting, turns) == "[INST] a [/INST] "


def test_answers_that_are_kept_are_not_asked_for_again(base_model, base_tokenizer, tmp_path, monkeypatch):
    generate, asked = questions.generate_texts, []

    def counting(model, tokenizer, prompts, *args, **how):
        asked.append(len(prompts))
        yield from generate(model, tokenizer, prompts, *args, **how)

    monkeypatch.setattr(questions, "generate_texts", counting)
    how = {"max_new_tokens": 3, "batch_size": 2}
    first, again = (read(base_tokenizer, Scoring("json")) for _ in range(2))
    file = AnswerFile(tmp_path / "a", "x")
    answer_questions(base_model, base_tokenizer, first, file=file, **how)
    again[2].prompt += "!"
    answer_questions(base_model, base_tokenizer, again, file=file, **how)
    assert asked == [2, 1]
    assert again[0].answer == first[0].answer != "" and again[1].answer is None
