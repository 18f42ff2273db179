from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch

from torchtune_lite.config.schema import hints

YES = [
    (3, int),
    (3, float),
    (3.5, float),
    (True, bool),
    ("x", str),
    (None, None),
    (3, int | None),
    (3, Annotated[int, "rows"]),
    ("a", Literal["a", "b"]),
    ("x/y", Path),
    ([1, 2], list[int]),
    ([0.9, 0.99], tuple[float, float]),
    ([1, 2, 3], tuple[int, ...]),
    (["q_proj"], Sequence[str]),
    (["a"], list[Literal["a", "b"]]),
    ({"a": 1}, dict[str, int]),
    ({"a": 1}, Mapping),
    (3e-4, float | torch.Tensor),
    ({"_component_": "a.b"}, int),
    ("anything", Any),
    ("anything", Callable[[int], int]),
    ("anything", "a forward reference"),
]
NO = [
    (3.5, int),
    (True, int),
    (True, float),
    (1, bool),
    ("2e-5,", float),
    ("2e-5,", float | torch.Tensor),
    (None, int),
    ("c", Literal["a", "b"]),
    (3, Path),
    ("ab", list[str]),
    ([1, "x"], list[int]),
    ([0.9], tuple[float, float]),
    (["c"], list[Literal["a", "b"]]),
    ("text", Iterable[str]),
    ({"a": "x"}, dict[str, int]),
    ([1], dict),
]


@pytest.mark.parametrize(("value", "hint", "fit"), [(*case, True) for case in YES] + [(*case, False) for case in NO])
def test_a_value_fits_a_hint(value, hint, fit):
    assert hints.fits(value, hint) is fit


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "int or null"),
        (list[str], "list of str"),
        (tuple[float, float], "list of float"),
        (float | torch.Tensor, "float"),
        (Literal["a", "b"], "a or b"),
        (dict[str, int] | str, "mapping or str"),
        (Path, "path"),
        (str | Path | None, "path or null"),
        (Annotated[bool, ""], "bool"),
    ],
)
def test_a_hint_is_described_in_yaml_words(hint, words):
    assert hints.describe(hint) == words


@pytest.mark.parametrize(
    ("hint", "left"), [(int | None, int), (int, int), (int | str | None, int | str | None), (list[int], list[int])]
)
def test_none_is_left_out_of_an_annotation(hint, left):
    assert hints.without_none(hint) == left


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (3, str, """; a text is quoted: '3', on a command line '"3"'"""),
        (True, str | Path, """; a text is quoted: 'true', on a command line '"true"'"""),
        (
            {"user": 4, "system": "x"},
            str | dict[str, str | None],
            """; a text is quoted: '4', on a command line '"4"'""",
        ),
        ({"user": "x"}, dict[str, str], ""),
        (3, dict, ""),
        ([], str, ""),
    ],
)
def test_what_to_do_with_a_number_for_a_text(value, hint, words):
    assert hints.advice(value, hint) == words


@pytest.mark.parametrize(("value", "words"), [(None, "null"), (True, "true"), (3, "int 3"), ("a", "text 'a'")])
def test_a_value_is_shown_with_its_kind(value, words):
    assert hints.shown(value) == words
