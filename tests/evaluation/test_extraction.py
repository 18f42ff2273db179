import pytest

from torchtune_lite.errors import ConfigError
from torchtune_lite.evaluation.extraction import extraction


@pytest.mark.parametrize(
    ("extract", "text", "expected"),
    [
        ("whole", " a b \n", "a b"),
        ("number", "3 + 4 = 7 #### 1,234.50 (of 9)", "1234.5"),
        ("number", "first #### 3 then #### -4\n", "-4"),
        ("number", "between 3 and 5 apples.", "5"),
        ("number", "1,000 000", "0"),
        ("number", "so .50 it is", "0.5"),
        ("number", "100", "100"),
        ("number", "9" * 40, "9" * 40),
        ("number", "-0.0", "0"),
        ("number", "+007.250", "7.25"),
        ("number", "none", None),
        ("number", "7 #### none", None),
        ("json", 'Sure: {"a": [1, {"b": null}]} and {"c": 2}', {"a": [1, {"b": None}]}),
        ("json", "set {x} or [1, 2]", [1, 2]),
        ("json", '{"a": 1', None),
        ("json", "[" * 5000, None),
        ("json", "7", None),
    ],
)
def test_the_answer_in_a_text(extract, text, expected):
    assert extraction(extract)(text) == expected


@pytest.mark.parametrize(
    ("regex", "text", "expected"),
    [
        (r"answer is (\w+)", "the answer is B, no, the answer is C.", "C"),
        (r"\b[A-D]\b", "A or B", "B"),
        (r"x( y)?", "x", None),
        (r"answer: (.*)", "none", None),
        (r"<a>( .* )</a>", "<a> b </a>", "b"),
    ],
)
def test_a_regular_expression_finds_the_last_one(regex, text, expected):
    assert extraction("regex", regex)(text) == expected


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("regex", None), "extract: regex goes with extract_regex"),
        (("json", "a"), "extract: regex goes with extract_regex"),
        (("regex", "("), r"extract_regex: '\(' is not a regular expression: missing \)"),
    ],
)
def test_an_expression_that_does_not_serve_is_one_line(given, problem):
    with pytest.raises(ConfigError, match=problem):
        extraction(*given)
