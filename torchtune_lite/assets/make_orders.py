"""Writes the chat demo's data: orders at a café as people say them, and the JSON that a till needs.

    python -m torchtune_lite.assets.make_orders --out torchtune_lite/assets

A row is `{"input": order, "output": JSON}`. The JSON has `to_go`, false unless the order says so, and `items`, each
with `count`, `size` (null where nobody says it), `item` in the singular and `with`, a list. An order that takes
something back counts as corrected: "a tea, no, make that two".

A drink and an extra that are paired in the test rows are never paired in the training rows: which are, is decided by a
hash of their names, whatever the seeds and the numbers of rows.
"""

import argparse
import hashlib
import json
from pathlib import Path
from random import Random
from typing import NamedTuple

DRINKS = ("latte", "cappuccino", "espresso", "flat white", "americano", "mocha", "green tea", "black tea", "chai")
DRINKS += ("hot chocolate", "iced coffee", "lemonade", "cold brew", "macchiato")
DRINK_EXTRAS = ("oat milk", "soy milk", "almond milk", "an extra shot", "vanilla syrup", "caramel", "cinnamon")
DRINK_EXTRAS += ("honey", "whipped cream", "lemon", "ice")
FOODS = (
    "croissant",
    "bagel",
    "blueberry muffin",
    "scone",
    "cheesecake",
    "brownie",
    "cinnamon roll",
    "cookie",
    "toastie",
)
FOOD_EXTRAS = ("butter", "jam", "cream cheese", "maple syrup")
SIZES = ("small", "medium", "large")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
TO_GO = ("to go", "to take away", "for takeaway", "to go please")
FOR_HERE = ("for here", "to have here", "to eat in", "")
GREETINGS = ("", "", "hi, ", "hello, ", "good morning, ")
REQUESTS = ("", "", "can I get ", "could I have ", "I'd like ", "we'll have ")


class Item(NamedTuple):
    """A line of an order; `size` is "" where nobody says it."""

    count: int
    item: str
    size: str
    extras: tuple[str, ...]

    @property
    def answer(self) -> dict[str, object]:
        """The order as the till needs it."""
        return {"count": self.count, "size": self.size or None, "item": self.item, "with": list(self.extras)}


def held_out(item: str, extra: str) -> bool:
    """Return whether a pair is for the test rows: one in six."""
    return hashlib.sha256(f"{item} {extra}".encode()).digest()[0] < 43


def draw_item(rng: Random, tested: bool) -> Item:
    """Draw a drink or something to eat; its extras are of the pairs that are `tested`, or of the others."""
    count = rng.choices(range(1, 7), [50, 22, 12, 8, 4, 4])[0]
    if rng.random() < 0.6:
        drink, size = rng.choice(DRINKS), rng.choice((*SIZES, ""))
        pool = [extra for extra in DRINK_EXTRAS if held_out(drink, extra) == tested]
        number = min(rng.choices(range(3), [45, 40, 15])[0], len(pool))
        return Item(count, drink, size, tuple(rng.sample(pool, number)))
    extras = (rng.choice(FOOD_EXTRAS),) if rng.random() < 0.25 else ()
    return Item(count, rng.choice(FOODS), "", extras)


def draw(rng: Random, tested: bool) -> list[Item]:
    """Draw an order of one to three different items; a `tested` one has a pair that is not trained on."""
    while True:
        items = [draw_item(rng, tested) for _ in range(rng.choices((1, 2, 3), [45, 40, 15])[0])]
        has_pair = any(item.item in DRINKS and item.extras for item in items)
        if len({item.item for item in items}) == len(items) and (has_pair or not tested):
            return items


def say_item(item: Item, rng: Random) -> str:
    """Write an item as one person might."""
    name = f"{item.size} {item.item}".strip()
    if item.count > 1:
        name += "s"
    number = rng.choice((NUMBERS[item.count], NUMBERS[item.count], str(item.count)))
    if item.count == 1:
        number = "an" if name[0] in "aeiou" else "a"
    elif item.count == 2 and rng.random() < 0.2:
        number = "a couple of"
    extras = f" with {' and '.join(item.extras)}" if item.extras else ""
    if item.count > 1 and rng.random() < 0.1:
        wrong = "an" if item.item[0] in "aeiou" else "a"
        return f"{wrong} {name[:-1]}{extras}, no, make that {NUMBERS[item.count]}"
    return f"{number} {name}{extras}"


def say(items: list[Item], to_go: bool, rng: Random) -> str:
    """Write an order as one person might."""
    *first, last = [say_item(item, rng) for item in items]
    text = f"{', '.join(first)} and {last}" if first else last
    where = rng.choice(TO_GO if to_go else FOR_HERE)
    if where and rng.random() < 0.2:
        text = f"{where.removesuffix(' please')}: {text}"
    else:
        text = rng.choice(REQUESTS) + text + (f"{rng.choice((' ', ', '))}{where}" if where else "")
    end = rng.choice(("", "", ".", " please", ", thanks"))
    return rng.choice(GREETINGS) + text + ("" if text.endswith("please") else end)


def rows(count: int, rng: Random, tested: bool) -> list[dict[str, str]]:
    """Make `count` rows, no answer twice."""
    made: dict[str, str] = {}
    while len(made) < count:
        items, to_go = draw(rng, tested), rng.random() < 0.5
        answer = json.dumps({"to_go": to_go, "items": [item.answer for item in items]})
        made.setdefault(answer, say(items, to_go, rng))
    return [{"input": order, "output": answer} for answer, order in made.items()]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for orders_{train,test}.jsonl")
    parser.add_argument("--train", type=int, default=600, help="rows to train on")
    parser.add_argument("--test", type=int, default=100, help="rows to test on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for side, count, seed in (("train", args.train, args.seed), ("test", args.test, args.seed + 1)):
        lines = (json.dumps(row) + "\n" for row in rows(count, Random(seed), tested=side == "test"))
        (args.out / f"orders_{side}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
