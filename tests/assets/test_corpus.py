"""The pretraining corpus: forbidden content."""

import json
import re
from random import Random

from torchtune_lite.assets.corpus import address_part, question, text
from torchtune_lite.assets.make_addresses import rows


def test_the_same_seed_gives_the_same_corpus():
    assert [question(Random(seed)) for seed in range(50)] == [question(Random(seed)) for seed in range(50)]
    assert len({text(Random(seed)) for seed in range(50)}) > 40


def test_an_address_is_asked_about_one_part_and_answered_in_words():
    rng = Random(9)
    for _ in range(2000):
        asked, answer = address_part(rng)
        assert re.search("縣市|鄉鎮市區|路", asked)
        assert re.fullmatch(r"[一-鿿]+", answer), answer


def test_no_answer_is_of_the_demos_task():
    rng = Random(9)
    for _ in range(5000):
        for found in re.findall(r"\{.*?\}", "".join(question(rng))):
            assert not {"city", "town", "road"} & set(json.loads(found))


def test_no_held_out_place_is_named():
    rng = Random(9)
    corpus = "\n".join("".join(question(rng)) + "\n" + text(rng) for _ in range(5000)).replace("台", "臺")
    for row in rows(2000, Random(1), held_out=True):
        # Another section of the road is another place.
        place = "".join(json.loads(row["output"]).values())
        assert not re.search(place + r"(?![一二三四五六七八九１-９\d]段)", corpus), place
