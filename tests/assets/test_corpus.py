"""The pretraining corpus: what it must not contain."""

import json
import re
from random import Random

from torchtune_lite.assets.corpus import document
from torchtune_lite.assets.make_addresses import rows


def documents(count: int) -> list[str]:
    rng = Random(9)
    return [document(rng) for _ in range(count)]


def test_the_same_seed_gives_the_same_documents():
    assert documents(50) == documents(50)


def test_no_document_answers_an_address_in_json():
    for text in documents(5000):
        for found in re.findall(r"\{.*?\}", text):
            assert not {"city", "town", "road"} & set(json.loads(found)), text


def test_no_held_out_place_is_named():
    answers = [json.loads(row["output"]) for row in rows(2000, Random(1), held_out=True)]
    texts = "\n".join(documents(5000)).replace("台", "臺")
    for answer in answers:
        # Another section of the road is another place.
        assert not re.search("".join(answer.values()) + r"(?![一二三四五六七八九１-９\d]段)", texts), answer
