"""How right an answer is, from 0 to 1, by what was extracted of it and of the expected text."""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)

Metric = Callable[[Any, Any], float]


def exact_match(answer: Any, expected: Any) -> float:
    """Return 1 for an answer that is the expected one: the same text, or JSON of the same values."""
    is_same = answer == expected and all(compared_fields(answer, expected).values())
    return float(answer is not None and is_same)


def normalized_match(answer: Any, expected: Any) -> float:
    """Return 1 where the words are the same: case, punctuation, articles and spaces aside, as SQuAD has it."""
    return float(answer is not None and words(answer) == words(expected))


def contains(answer: Any, expected: Any) -> float:
    """Return 1 where the expected text stands in the answer."""
    return float(answer is not None and as_text(expected) in as_text(answer))


def f1(answer: Any, expected: Any) -> float:
    """Return the harmonic mean of precision and recall of the words (SQuAD, arXiv 1606.05250, section 6.1)."""
    ours, theirs = words(answer), words(expected)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def json_fields(answer: Any, expected: Any) -> float:
    """Return the share of fields that are right, of those of either; 0 for an answer without JSON."""
    fields = compared_fields(answer, expected)
    return sum(fields.values()) / len(fields) if fields else float(answer == expected)


METRICS: dict[str, Metric] = {
    each.__name__: each for each in (exact_match, normalized_match, contains, f1, json_fields)
}


def compared_fields(answer: Any, expected: Any) -> dict[str, bool]:
    """Return of each field of either, by its dotted path (`items.0.size`), whether both have it and agree.

    A number agrees with one of the same value, but `true` with no number, as it would in Python.
    """
    ours, theirs = (
        {path: (isinstance(value, bool), value) for path, value in _fields(each)} for each in (answer, expected)
    )
    return {path: ours.get(path) == theirs.get(path) for path in {**theirs, **ours}}


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that hold no others, with their paths; empty lists and objects are such."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    empty = True
    for name, part in parts:
        empty = False
        yield from _fields(part, f"{path}.{name}" if path else str(name))
    if empty and path:
        yield path, value


def words(value: Any) -> list[str]:
    """Return the words of an answer, normalised."""
    return ARTICLES.sub(" ", as_text(value).lower().translate(PUNCTUATION)).split()


def as_text(value: Any) -> str:
    """Return text as it is, nothing as "", and what JSON holds as it writes it."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
