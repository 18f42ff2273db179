"""Answers to the rows of a file: in their order, with few rows in memory, and going on where a run was stopped."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torchtune_lite.data import AlpacaToMessages, Message, OpenAIToMessages
from torchtune_lite.data.columns import check_text
from torchtune_lite.errors import ConfigError, DataError, TuneError
from torchtune_lite.generation.answer_file import AnswerFile, Result, as_json
from torchtune_lite.generation.engine import Engine
from torchtune_lite.generation.prompts import tokens_of
from torchtune_lite.generation.request import Request
from torchtune_lite.generation.sampling import Sampling
from torchtune_lite.generation.text import text_of

COLUMNS = ("messages", "instruction", "prompt", "input")
SKIPPED = ", or set dataset.on_bad_sample=skip"
"""What errors of rows advise where they are trained on."""


def as_prompt(row: Any, system: str | None = None, question: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the question of a row as a sample for a tokenizer, with `messages`; DataError for a row without one.

    A row has `messages`, a conversation, of which an answer at the end is left out, with what a chat template may read
    besides; or `instruction`, and perhaps `input`, which Alpaca's prompt is put around; or `prompt` or `input`, a text
    that `question` is applied to. `system` is for rows without a system prompt of their own.
    """
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    beside: dict[str, Any] = {}
    if column is None:
        raise DataError(f"has none of the columns {', '.join(COLUMNS)}")
    if column == "messages":
        reader = OpenAIToMessages()
        messages, beside = reader.read(row[column], column, set()), reader.beside(row, [column], set())
    elif column == "instruction":
        messages = AlpacaToMessages()({**row, "output": ""})["messages"]
    else:
        messages = [Message("user", question(check_text(row[column], f"column {column!r}")))]
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role == "system":
        raise DataError(f"column {column!r} has no question")
    if system is not None and messages[0].role != "system":
        messages = [Message("system", system), *messages]
    return {"messages": messages, **beside}


def answers(
    rows: Any, first: int, engine: Engine, tokenizer: Any, sampling: Sampling, *, ahead: int, **asked: Any
) -> Iterator[Result]:
    """Yield the results of the rows from `first` on, in their order, as soon as they are known.

    A result has the number of its `row`, what stands there as `given`, `answer`, `finish_reason` and `num_tokens`; or
    else the `problem`.
    At most `ahead` rows are under way; `asked` are arguments of `as_prompt`. A row that cannot be asked costs no other:
    its result says why. With a seed each row has its own: its answer depends on no other row, nor on where a run began.
    """
    under_way: deque[tuple[Result, Request | None]] = deque()
    following = first
    while under_way or following < len(rows):
        while following < len(rows) and len(under_way) < ahead:
            under_way.append(_started(rows, following, engine, tokenizer, sampling, asked))
            following += 1
        while under_way and (under_way[0][1] is None or under_way[0][1].finish_reason is not None):
            result, request = under_way.popleft()
            if request is not None:
                answer = text_of(request.tokens, tokenizer, sampling.stop_strings)
                result |= {"answer": answer, "finish_reason": request.finish_reason, "num_tokens": len(request.tokens)}
            yield result
        if any(request is not None for _, request in under_way):
            engine.step()


def _started(
    rows: Any, row: int, engine: Engine, tokenizer: Any, sampling: Sampling, asked: Mapping[str, Any]
) -> tuple[Result, Request | None]:
    """Begin a row's result, and its answer, unless it has a problem."""
    result: Result = {"row": row}
    try:
        result["given"] = rows[row]
        prompt = tokens_of(tokenizer, as_prompt(rows[row], **asked))
        own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + row)
        [request] = engine.submit(prompt, own)
    except TuneError as error:
        where, problem = rows.where(row), str(error).removesuffix(SKIPPED)
        return result | {"problem": problem if problem.startswith(where) else f"{where}: {problem}"}, None
    return result, request


def num_answered(file: AnswerFile, rows: Any) -> int:
    """Return how many of the rows, from the first on, have their results in a file; ConfigError for those of others."""
    done, last = 0, {}
    for done, last in enumerate(file.results(), start=1):
        if last["row"] != done - 1:
            break
    if done and not _is_result(last, rows, done - 1):
        raise ConfigError(
            f"{file.path} holds something else than answers to {rows.name}; choose another file, or remove it"
        )
    return done


def _is_result(result: Result, rows: Any, row: int) -> bool:
    """Return whether a result is that of a row."""
    try:
        given = rows[row] if row < len(rows) and "given" in result else None
        return result["row"] == row < len(rows) and result.get("given") == json.loads(as_json(given))
    except DataError:
        return False
