"""The demo's data: real places, rows that a person could answer, and two disjoint splits."""

import json
import re
from pathlib import Path
from random import Random

import pytest

from torchtune_lite.assets import make_addresses
from torchtune_lite.assets.make_addresses import GAZETTEER, TOWNS, Address, chinese, draw, rows, write

ASSETS = Path(make_addresses.__file__).parent


def committed(side: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSETS / f"addresses_{side}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_gazetteer_has_every_county_and_town_once():
    assert (len(GAZETTEER), len(TOWNS)) == (22, 368)
    assert all(re.fullmatch(r"\d{3}", code) for towns in GAZETTEER.values() for code in towns.values())
    # Districts in the cities, towns and townships in the counties.
    assert all((town[-1] == "區") == (city[-1] == "市") for city, town in TOWNS)
    assert not [name for pair in TOWNS for name in pair if "台" in name]


@pytest.mark.parametrize(
    ("number", "spelt"),
    [(1, "一"), (10, "十"), (12, "十二"), (20, "二十"), (110, "一百一十"), (120, "一百二十"), (305, "三百零五")],
)
def test_a_number_is_spelt_as_it_is_spoken(number, spelt):
    assert chinese(number) == spelt


def test_the_road_of_an_answer_has_chinese_numerals():
    address = Address("臺中市", "西屯區", "臺灣", 0, "大道", 3)
    assert address.answer == {"city": "臺中市", "town": "西屯區", "road": "臺灣大道三段"}
    assert Address("高雄市", "三民區", "建國", 2, "路", 0).answer["road"] == "建國二路"


def test_a_written_address_still_holds_its_town_and_road():
    rng = Random(3)
    for _ in range(500):
        address = draw(rng, held_out=False)
        text = re.sub(r"[ ,\-，　－]", "", write(address, rng)).replace("台", "臺")
        text = text.translate({wide: ord(str(i)) for i, wide in enumerate(range(ord("０"), ord("９") + 1))})
        in_arabic = address.road(str)
        assert address.town in text
        assert address.answer["road"] in text or in_arabic in text, (text, address)


def test_the_same_seed_gives_the_same_rows_and_another_others():
    assert rows(20, Random(5), False) == rows(20, Random(5), False)
    assert rows(20, Random(5), False) != rows(20, Random(6), False)


def test_the_sides_share_no_triple_whatever_the_seed():
    train = {row["output"] for row in rows(2000, Random(1), held_out=False)}
    test = {row["output"] for row in rows(200, Random(1), held_out=True)}
    assert (len(train), len(test)) == (2000, 200)
    assert not train & test


def test_the_committed_files_are_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_addresses", "--out", str(tmp_path)])
    make_addresses.main()
    for side in ("train", "test"):
        file = f"addresses_{side}.jsonl"
        assert (tmp_path / file).read_bytes() == (ASSETS / file).read_bytes()


def test_the_committed_files_share_no_triple_and_stay_small():
    train, test = committed("train"), committed("test")
    assert len(test) == 500
    assert not {row["output"] for row in train} & {row["output"] for row in test}
    assert all(list(json.loads(row["output"])) == ["city", "town", "road"] for row in train + test)
    assert (ASSETS / "addresses_train.jsonl").stat().st_size < 2_000_000
