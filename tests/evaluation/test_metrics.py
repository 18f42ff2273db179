import pytest

from torchtune_lite.evaluation.metrics import METRICS, compared_fields

ORDER = {"to_go": True, "items": [{"size": "L", "item": "tea"}, {"size": "S", "item": "cake"}]}
OTHER = {"to_go": True, "items": [{"size": "M", "item": "tea"}], "note": ""}


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "score"),
    [
        ("exact_match", "a", "a", 1),
        ("exact_match", "a", "A", 0),
        ("exact_match", {"a": 1, "b": [2]}, {"b": [2], "a": 1}, 1),
        ("exact_match", [1, 2], [2, 1], 0),
        ("exact_match", {"a": [True]}, {"a": [1]}, 0),
        ("exact_match", {"a": 1.0, "b": {}}, {"a": 1, "b": {}}, 1),
        ("json_fields", {"a": True, "b": 0}, {"a": 1, "b": 0.0}, 0.5),
        ("exact_match", None, None, 0),
        ("normalized_match", "The  Eiffel-Tower!", "eiffeltower", 1),
        ("normalized_match", "an apple", "apples", 0),
        ("normalized_match", None, "", 0),
        ("contains", "it is Paris.", "Paris", 1),
        ("contains", "paris", "Paris", 0),
        ("f1", "the cat sat", "a cat ran", 0.5),
        ("f1", "cat cat", "cat", 2 / 3),
        ("f1", None, "cat", 0),
        ("f1", "", "the", 1),
        ("json_fields", ORDER, ORDER, 1),
        ("json_fields", OTHER, ORDER, 2 / 6),
        ("json_fields", None, ORDER, 0),
        ("json_fields", {}, {}, 1),
        ("json_fields", "text", ORDER, 0),
    ],
)
def test_how_right_an_answer_is(metric, answer, expected, score):
    assert METRICS[metric](answer, expected) == pytest.approx(score)


def test_fields_are_compared_one_by_one_those_too_many_also():
    assert compared_fields(OTHER, ORDER) == {
        "to_go": True,
        "items.0.size": False,
        "items.0.item": True,
        "items.1.size": False,
        "items.1.item": False,
        "note": False,
    }
    assert compared_fields({"a": []}, {"a": {}}) == {"a": False}
