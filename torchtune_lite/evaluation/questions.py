"""Questions with the answers that are expected: asked as in training, one by one right or wrong."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtune_lite.data import ChatTemplate, Message
from torchtune_lite.data.templates import opened
from torchtune_lite.errors import ConfigError, DataError, TuneError, did_you_mean
from torchtune_lite.evaluation.extraction import extraction
from torchtune_lite.evaluation.metrics import METRICS, compared_fields
from torchtune_lite.evaluation.texts import generate_texts
from torchtune_lite.generation import AnswerFile, Sampling, cap_length, put_question, tokens_of
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.utils import counted, get_logger


@dataclass
class Question:
    """A row: its prompt, the answer that is expected and the one that was given, and how right that is.

    A row that cannot be asked has a `problem` instead, and counts as wrong.
    """

    row: int
    prompt: str | None = None
    expected: str | None = None
    answer: str | None = None
    problem: str | None = None
    tokens: list[int] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    fields: dict[str, bool] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """Return what is written of it."""
        result = {"row": self.row, "prompt": self.prompt, "expected": self.expected, "answer": self.answer}
        result |= {"match": self.scores["exact_match"] == 1, "scores": self.scores}
        return result | {name: value for name in ("fields", "problem") if (value := getattr(self, name))}


class Scoring:
    """How answers are scored: by exact match and other `metrics`, of what `extraction` finds in them.

    Raise ConfigError for a metric that there is not.
    """

    def __init__(self, extract: str = "whole", regex: str | None = None, metrics: Sequence[str] = ()) -> None:
        for name in metrics:
            if name not in METRICS:
                raise ConfigError(f"metrics: {name!r} is not one of {', '.join(METRICS)}{did_you_mean(name, METRICS)}")
        self.metrics = list(dict.fromkeys(["exact_match", *metrics]))
        self._kind, self._extract = extract, extraction(extract, regex)

    def expected(self, text: str) -> Any:
        """Return the answer in the expected text, all of it where a regular expression finds none there.

        Raise DataError for one without a number, or without JSON.
        """
        answer = self._extract(text)
        if answer is None and self._kind != "regex":
            what = {"number": "no number", "json": "no JSON"}[self._kind]
            raise DataError(f"there is {what} in the text that is expected")
        return text.strip() if answer is None else answer

    def score(self, question: Question) -> None:
        """Score a question that has its answer; 0 for one that could not be asked."""
        if question.problem:
            question.scores = dict.fromkeys(self.metrics, 0.0)
            return
        answer, expected = self._extract(question.answer), self.expected(question.expected)
        question.scores = {name: METRICS[name](answer, expected) for name in self.metrics}
        if "json_fields" in self.metrics:
            question.fields = compared_fields(answer, expected)


def read_questions(
    rows: Any,
    to_messages: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    tokenizer: Any,
    scoring: Scoring,
    *,
    max_seq_len: int,
    max_rows: int | None = None,
    template: str | None = None,
) -> list[Question]:
    """Return a question for each row, or of the first `max_rows`: the last message is the answer that is expected.

    The question before it is put into the `template`, as `generation.put_question` does.
    """

    def read(row: int) -> Question:
        question = Question(row)
        try:
            *turns, expected = to_messages(rows[row])["messages"]
            turns[-1] = Message(turns[-1].role, put_question(template, turns[-1].text_content))
            question.expected = expected.text_content.strip()
            scoring.expected(question.expected)
            question.prompt = written(tokenizer, turns)
            tokens = tokens_of(tokenizer, {"messages": turns})
            cap_length(len(tokens), 1, max_seq_len)
            question.tokens = tokens
        except TuneError as error:
            where = rows.where(row)
            question.problem = f"{where}: {str(error).removeprefix(f'{where}: ')}"
        return question

    return [read(row) for row in range(min(len(rows), max_rows or len(rows)))]


def written(tokenizer: Any, messages: list[Message]) -> str:
    """Write a prompt as the template has it, special tokens of a chat template spelled out."""
    template = getattr(tokenizer, "prompt_template", None)
    if isinstance(template, ChatTemplate):
        return template.prompt(messages)
    return "".join(message.text_content for message in opened(messages, template))


def warn_of_problems(questions: Sequence[Question], path: Path) -> None:
    """Name the first rows that cannot be asked, of which `path` will name all; DataError where none can."""
    problems = [question.problem for question in questions if question.problem]
    if len(problems) == len(questions):
        raise DataError(f"none of {counted(len(problems), 'row')} can be answered: {problems[0]}")
    for problem in problems[:3]:
        get_logger().warning("%s; it counts as wrong", problem)
    if len(problems) > 3:
        more = counted(len(problems) - 3, "more row")
        get_logger().warning("%s cannot be answered either; %s will name them", more, path)


def answer_questions(
    model: TransformerDecoder,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
    file: AnswerFile,
) -> None:
    """Answer greedily the questions that can be asked, `batch_size` at a time, that have no answer in `file` yet."""
    known = {(result["row"], result["prompt"]): result["answer"] for result in file.results()}
    for question in questions:
        question.answer = known.get((question.row, question.prompt))
    left = [question for question in questions if not question.problem and question.answer is None]
    asked = sum(not question.problem for question in questions)
    if len(left) < asked:
        get_logger().info("%s were answered before, and are kept", f"{asked - len(left):,} of {counted(asked, 'row')}")
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_strings=getattr(tokenizer, "stop_strings", ()))
    prompts = [question.tokens for question in left]
    texts = generate_texts(model, tokenizer, prompts, [sampling] * len(left), batch_size=batch_size)
    for number, text in tqdm(texts, total=asked, initial=asked - len(left), desc="answering", unit="row"):
        question = left[number]
        question.answer = text.strip()
        file.write({"row": question.row, "prompt": question.prompt, "answer": question.answer})


def summary(questions: Sequence[Question], metrics: Sequence[str]) -> dict[str, Any]:
    """Return the mean of each metric, and where JSON was compared field by field, of each field, its index aside."""
    count = len(questions)
    means: dict[str, Any] = {name: sum(each.scores[name] for each in questions) / count for name in metrics}
    rights: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        for path, right in question.fields.items():
            rights[".".join("*" if part.isdigit() else part for part in path.split("."))].append(right)
    if rights:
        means["fields"] = {path: sum(right) / len(right) for path, right in rights.items()}
    return means
