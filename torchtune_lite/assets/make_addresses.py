"""Writes the demo's data: Taiwanese addresses as people write them, and the JSON that names city, town and road.

    python -m torchtune_lite.assets.make_addresses --out torchtune_lite/assets

The cities and counties, their districts and towns, and the 3-digit postcodes are real (`gazetteer.json`); the roads are
plausible ones (`words.json`). A row is `{"input": address, "output": JSON}`. In the output:

- `city` and `town` have their official form, 臺 never 台; a city that the address leaves out (only where no other town
  has that name) is filled in.
- `road` is the road with its section, numerals in Chinese (中山路3段 → 中山路三段, 中山1路 → 中山一路) and 臺 for 台.
  Lane 巷, alley 弄, number 號, floor 樓, village 里 or 村 and neighbourhood 鄰 are left out.

Each (city, town, road) belongs to the train or the test side by a hash of its name, so no triple is ever on both sides,
whatever the seeds and sizes.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple


def read(name: str) -> Any:
    """Read a JSON file of this folder."""
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


GAZETTEER: dict[str, dict[str, str]] = read("gazetteer.json")  # city → town → postcode
WORDS: dict[str, Any] = read("words.json")
TOWNS = [(city, town) for city, towns in GAZETTEER.items() for town in towns]
UNIQUE_TOWNS = {town for _, town in TOWNS if sum(town == other for _, other in TOWNS) == 1}
DIGITS = "〇一二三四五六七八九"
WIDE = str.maketrans("0123456789-() ,", "０１２３４５６７８９－（）　，")


class Address(NamedTuple):
    """What the demo asks for; `ordinal` is the 2 of 建國二路, `section` that of 中山路二段, 0 where there is none."""

    city: str
    town: str
    name: str
    ordinal: int
    kind: str
    section: int

    def road(self, numeral: Callable[[int], str]) -> str:
        """Write road and section with the given numerals."""
        ordinal = numeral(self.ordinal) if self.ordinal else ""
        section = f"{numeral(self.section)}段" if self.section else ""
        return f"{self.name}{ordinal}{self.kind}{section}"

    @property
    def answer(self) -> dict[str, str]:
        """The three parts in their official form."""
        return {"city": self.city, "town": self.town, "road": self.road(chinese)}

    @property
    def held_out(self) -> bool:
        """True for one triple in sixteen: these are only ever tested on."""
        return hashlib.sha256(" ".join(self.answer.values()).encode()).digest()[0] < 16


def chinese(number: int) -> str:
    """Spell 1 to 999 as it is spoken: 12 → 十二, 120 → 一百二十, 305 → 三百零五."""
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    head = f"{DIGITS[hundreds]}百" + ("零" if rest and not tens else "") if hundreds else ""
    ten = (DIGITS[tens] if hundreds or tens > 1 else "") + "十" if tens else ""
    return head + ten + (DIGITS[ones] if ones else "")


def draw(rng: Random, held_out: bool) -> Address:
    """Draw one address of the test side (`held_out`) or of the train side."""
    while True:
        city, town = rng.choice(TOWNS)
        if rng.random() < 0.5:
            name = rng.choice(WORDS["road_names"])
        else:
            name = rng.choice(WORDS["road_first"]) + rng.choice(WORDS["road_second"])
        kind = rng.choices(["路", "街", "大道"], [65, 30, 5])[0]
        form = rng.random()
        if kind == "路" and form < 0.2:
            name += rng.choice("東西南北中")
        ordinal = rng.randint(1, 6) if kind != "大道" and 0.2 < form < 0.3 else 0
        section = 0
        if kind != "街" and rng.random() < 0.5:
            section = rng.choices(range(1, 10), [9, 9, 6, 4, 2, 1, 1, 1, 1])[0]
        address = Address(city, town, name, ordinal, kind, section)
        if address.held_out == held_out:
            return address


def write(address: Address, rng: Random) -> str:
    """Write an address as one person might: with what they leave out, add, and write another way."""
    numeral = chinese if rng.random() < 0.1 else str
    road = address.road(rng.choices([chinese, str], [55, 45])[0])

    def upto(most: int) -> str:
        return numeral(rng.randint(1, most))

    postcode = GAZETTEER[address.city][address.town]
    postcode += rng.choice(["", "", f"{rng.randint(0, 99):02}", f"{rng.randint(0, 999):03}"])
    postcode = rng.choice(["", "", "", "{} ", "{}", "{}", "({})", "〒{} ", "{}-"]).format(postcode)
    country = rng.choices(["", "臺灣", "臺灣省", "中華民國"], [94, 3, 2, 1])[0]
    city = "" if address.town in UNIQUE_TOWNS and rng.random() < 0.05 else address.city
    village = lane = floor = note = ""
    if rng.random() < 0.2:
        village = rng.choice(WORDS["villages"]) + rng.choice(WORDS["villages"])
        village += "村" if address.town[-1] == "鄉" else "里"
        village += f"{upto(30)}鄰" if rng.random() < 0.6 else ""
    if rng.random() < 0.4:
        lane = f"{upto(600)}巷"
        lane += f"{upto(80)}弄" if rng.random() < 0.4 else ""
    number = upto(800)
    numbers = ["號", f"之{upto(30)}號", f"號之{upto(30)}", f"-{rng.randint(1, 30)}號"]
    number += rng.choices(numbers, [7, 1, 1, 1])[0]
    if rng.random() < 0.4:
        floor = rng.choice(["{}樓", "{}樓", "{}F", "{}樓之{}"]).format(upto(28), rng.randint(1, 12))
    if rng.random() < 0.1:
        note = rng.choice(["({})", " {}", ",{}"]).format(rng.choice(WORDS["notes"]))
    gap = rng.choices(["", " ", ",", "-"], [80, 12, 6, 2])[0]
    parts = [country, city, address.town, village, road, lane, number + floor]
    text = postcode + gap.join(filter(None, parts)) + note
    if rng.random() < 0.6:
        text = text.replace("臺", "台")
    return text.translate(WIDE) if rng.random() < 0.12 else text


def rows(count: int, rng: Random, held_out: bool) -> list[dict[str, str]]:
    """Make `count` rows, no (city, town, road) twice."""
    drawn: dict[tuple[str, ...], Address] = {}
    while len(drawn) < count:
        address = draw(rng, held_out)
        drawn.setdefault(tuple(address.answer.values()), address)
    return [{"input": write(a, rng), "output": json.dumps(a.answer, ensure_ascii=False)} for a in drawn.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for addresses_{train,test}.jsonl")
    parser.add_argument("--train", type=int, default=10_000, help="rows to train on")
    parser.add_argument("--test", type=int, default=500, help="rows to test on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sides = {
        "train": rows(args.train, Random(args.seed), held_out=False),
        "test": rows(args.test, Random(args.seed + 1), held_out=True),
    }
    assert not {row["output"] for row in sides["train"]} & {row["output"] for row in sides["test"]}
    for name, side in sides.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in side)
        (args.out / f"addresses_{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
