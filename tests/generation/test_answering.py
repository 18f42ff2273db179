"""Answers to the rows of a file: each as it would be alone, in order, and none of them twice."""

import json
from types import SimpleNamespace

import pytest

from tests import scripted_model
from torchtune_lite import training
from torchtune_lite.checkpoint import find_model
from torchtune_lite.data import load_rows
from torchtune_lite.data.messages import ALPACA_PROMPT
from torchtune_lite.data.readers.rows import Rows
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.generation import (
    AnswerFile,
    Engine,
    Sampling,
    answers,
    as_prompt,
    generate,
    num_answered,
    tokens_of,
)

SCRIPT = {"A": "路市", "B": "大安" * 2, "C": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "m"
    scripted_model.make(folder, SCRIPT)
    inference = training.Inference(SimpleNamespace(**find_model(folder).values, device="cpu", log_level="INFO"))
    tokenizer, model = inference.build()
    inference.load()
    return tokenizer, model


def results(model, rows, first=0, slots=2, ahead=6, max_new_tokens=5, system=None, **options):
    tokenizer, decoder = model
    engine = Engine(decoder, slots=slots, stop_tokens=tokenizer.stop_tokens, tokenizer=tokenizer)
    sampling = Sampling(max_new_tokens=max_new_tokens, **options)
    yield from answers(rows, first, engine, tokenizer, sampling, ahead=ahead, system=system)


def turns(row, system=None):
    return [(turn.role, turn.text_content) for turn in as_prompt(row, system)["messages"]]


ASK, ANSWER, SYSTEM = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("system", "s"))
)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q"}, [("user", "q")]),
        ({"input": "q", "output": "gold"}, [("user", "q")]),
        ({"prompt": None, "input": "q"}, [("user", "q")]),
        ({"messages": [ASK]}, [("user", "q")]),
        ({"messages": [SYSTEM, ASK, ANSWER]}, [("system", "s"), ("user", "q")]),
        ({"messages": [ASK, ANSWER, ASK, ANSWER]}, [("user", "q"), ("assistant", "a"), ("user", "q")]),
        ({"messages": json.dumps([ASK])}, [("user", "q")]),
        ({"instruction": "q", "input": "", "output": "gold"}, [("user", ALPACA_PROMPT.format(instruction="q"))]),
    ],
)
def test_each_form_of_a_row_is_a_question(row, expected):
    assert turns(row) == expected
    with_system = expected if expected[0][0] == "system" else [("system", "S"), *expected]
    assert turns(row, system="S") == with_system


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "has none of the columns messages, instruction, prompt, input"),
        ({"output": "a"}, "has none of the columns"),
        ({"prompt": 7}, "column 'prompt'"),
        ({"messages": []}, "column 'messages' has no question"),
        ({"messages": [SYSTEM]}, "column 'messages' has no question"),
        ({"messages": [SYSTEM, ANSWER]}, "column 'messages' has no question"),
        ({"messages": [{"role": "martian", "content": "q"}]}, "martian"),
        ({"messages": "hi"}, "column 'messages' must be a list of messages"),
    ],
)
def test_a_row_without_a_question_says_why(row, problem):
    with pytest.raises(DataError, match=problem):
        as_prompt(row)


def test_a_row_gives_a_chat_template_its_tools():
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert as_prompt({"messages": [ASK], "tools": tools})["chat_template_kwargs"] == {"tools": tools}


def rows_of(*texts):
    return Rows("rows", [{"prompt": text} for text in texts], lambda i: f"rows:{i + 1}")


def test_results_come_in_order_and_are_those_of_each_row_alone(model):
    tokenizer, decoder = model
    rows = rows_of("B", "A", "C", "x A", "B", "x C", "A")
    found = list(results(model, rows))
    assert [each["row"] for each in found] == list(range(7)) and [each["given"] for each in found] == list(rows)
    assert [each["answer"] for each in found] == ["大安大安大", "路市", "", "路市", "大安大安大", "", "路市"]
    assert [each["finish_reason"] for each in found] == ["length", "stop", "stop", "stop", "length", "stop", "stop"]
    for row, each in zip(rows, found, strict=True):
        prompt = tokens_of(tokenizer, as_prompt(row))
        [tokens] = generate(decoder, [prompt], max_new_tokens=5, stop_tokens=tokenizer.stop_tokens)
        assert tokenizer.decode(tokens) == each["answer"] and len(tokens) == each["num_tokens"]
    assert list(results(model, rows, first=4, slots=1, ahead=1)) == found[4:]


def test_a_drawn_answer_depends_on_its_row_alone(model):
    rows = rows_of("A", "A", "B", "x A")
    drawn = {"temperature": 60.0, "seed": 3}
    found = list(results(model, rows, **drawn))
    assert found[2:] == list(results(model, rows, first=2, slots=4, **drawn))
    assert found[0]["answer"] != found[1]["answer"]
    assert found != list(results(model, rows, temperature=60.0, seed=4))


def test_one_bad_row_does_not_cost_the_rest(model, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "A"}\nnot json\n{"q": 1}\n{"prompt": "%s"}\n{"prompt": "A"}\n' % ("x" * 3000)
    )
    rows = load_rows(str(tmp_path / "rows.jsonl"))
    found = list(results(model, rows))
    assert [each.get("answer") for each in found] == ["路市", None, None, None, "路市"]
    place = str(tmp_path / "rows.jsonl")
    problems = [each.get("problem", "") for each in found]
    assert problems[1].startswith(f"{place}:2:1: invalid JSON") and "on_bad_sample" not in problems[1]
    assert problems[2] == f"{place}:3: has none of the columns messages, instruction, prompt, input"
    assert problems[3].startswith(f"{place}:4: a prompt of 3,00") and "leaves no room for an answer" in problems[3]
    assert "given" not in found[1] and found[2]["given"] == {"q": 1}


def test_few_rows_are_in_memory(model):
    class Seen:
        name, most, taken = "rows", 0, 0

        def __len__(self):
            return 40

        def __getitem__(self, index):
            self.most, self.taken = max(self.most, index - done), index
            return {"prompt": "A"}

    rows, done = Seen(), 0
    for done, _ in enumerate(results(model, rows, ahead=5), start=1):  # noqa: B007 (read by Seen)
        pass
    assert done == 40 and rows.taken == 39 and rows.most < 5


def file_of(path, *results):
    file = AnswerFile(path, "m")
    for result in results:
        file.write(result)
    return file


def result(row, text="A", **more):
    return {"row": row, "given": {"prompt": text}, "answer": "a", **more}


def test_a_run_goes_on_after_the_rows_that_have_their_results(model, tmp_path):
    rows = rows_of("A", "A", "B")
    whole = list(results(model, rows))
    for count in range(4):
        file = file_of(tmp_path / f"{count}.jsonl", *whole[:count])
        assert num_answered(file, rows) == count
        file.close()


@pytest.mark.parametrize(
    "written",
    [
        [result(1)],
        [result(0, "B")],
        [result(0), result(1), result(2), result(3)],
        [result(0), result(0)],
        [result(0), result(2), result(2)],
    ],
)
def test_a_file_of_other_rows_is_refused(tmp_path, written):
    with pytest.raises(ConfigError, match="out holds something else than answers to rows; choose another file, or rem"):
        num_answered(file_of(tmp_path / "out", *written), rows_of("A", "A", "A"))


def test_a_result_of_a_row_that_could_not_be_read_counts(tmp_path):
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text('{"prompt": "A"}\nnot json\n')
    file = file_of(tmp_path / "out", result(0), {"row": 1, "problem": "rows.jsonl:2: ..."})
    assert num_answered(file, load_rows(str(rows_file))) == 2
