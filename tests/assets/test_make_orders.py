"""The chat demo's data: orders that agree with their JSON, and test rows whose pairs are not in training."""

import json
from pathlib import Path
from random import Random

import pytest

from torchtune_lite.assets import make_orders
from torchtune_lite.assets.make_orders import DRINK_EXTRAS, DRINKS, Item, draw, held_out, rows, say

ASSETS = Path(make_orders.__file__).parent
ARGS = {"train": (600, 0, False), "test": (100, 1, True)}


def committed(side: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / f"orders_{side}.jsonl").read_text(encoding="utf-8").splitlines()]


def pairs(side: str) -> set[tuple[str, str]]:
    """The pairs of a drink and an extra in the committed rows."""
    items = [item for row in committed(side) for item in json.loads(row["output"])["items"]]
    return {(item["item"], extra) for item in items if item["item"] in DRINKS for extra in item["with"]}


@pytest.mark.parametrize("side", ARGS)
def test_the_committed_rows_are_those_of_the_script(side):
    count, seed, tested = ARGS[side]
    assert committed(side) == rows(count, Random(seed), tested)


def test_the_test_rows_have_pairs_that_no_training_row_has():
    assert not pairs("train") & pairs("test")
    assert {pair for pair in pairs("train") | pairs("test") if held_out(*pair)} == pairs("test")
    assert len(pairs("test")) > 10
    share = sum(held_out(drink, extra) for drink in DRINKS for extra in DRINK_EXTRAS)
    assert 0.1 < share / (len(DRINKS) * len(DRINK_EXTRAS)) < 0.25


def test_no_answer_is_there_twice():
    answers = [row["output"] for side in ARGS for row in committed(side)]
    assert len(set(answers)) == len(answers) == 700


def test_an_order_says_what_the_till_needs():
    rng = Random(7)
    for _ in range(300):
        items, to_go = draw(rng, tested=False), rng.random() < 0.5
        text = say(items, to_go, rng)
        for item in items:
            assert item.item in text and item.size in text and all(extra in text for extra in item.extras), text
        assert to_go == any(words in text for words in ("to go", "take away", "takeaway")), text


def test_an_answer_has_all_keys():
    assert Item(2, "latte", "", ("honey",)).answer == {"count": 2, "size": None, "item": "latte", "with": ["honey"]}
    assert Item(1, "scone", "", ()).answer == {"count": 1, "size": None, "item": "scone", "with": []}


def test_the_rows_are_small_enough_to_ship():
    assert sum((ASSETS / f"orders_{side}.jsonl").stat().st_size for side in ARGS) < 300_000
