"""What the embedded base model reads before any fine-tuning: short documents, generated from a seed.

They teach what a general base model would bring: the characters, which town lies where (`gazetteer.json`), numerals,
copying a span, key-value lists and JSON, one-line questions and answers about people, shops and addresses. No document
asks for the demo's task: addresses are only ever asked about one part at a time, in words, and never answered in JSON;
the addresses the demo is tested on (`Address.held_out`) occur nowhere.
"""

import json
import string
from random import Random

from torchtune_lite.assets.make_addresses import GAZETTEER, TOWNS, UNIQUE_TOWNS, WIDE, WORDS, chinese, draw, write

KEYS = {
    "name": "姓名", "phone": "電話", "item": "品項", "count": "數量", "price": "價格", "date": "日期",
    "shop": "店名", "color": "顏色", "team": "隊伍", "code": "代號", "place": "地點", "time": "時間",
}  # fmt: skip
PLACE_KEYS = {
    "city": "縣市", "town": "鄉鎮市區", "road": "路", "lane": "巷", "number": "號", "floor": "樓", "address": "地址",
}  # fmt: skip
DICTIONARY = KEYS | PLACE_KEYS
HAN = sorted({*"".join(sum(TOWNS, ())), *"".join(DICTIONARY.values()), *"".join(map("".join, WORDS.values()))})
ASCII = string.ascii_letters + string.digits
FORMS = ["[INST] {} [/INST] {}", "[INST] {} [/INST] {}", "{}\n{}", "問：{}\n答：{}"]


def ask(question: str, answer: str, rng: Random) -> str:
    """Joins the two as plain text, or as Llama 2's instruction format."""
    return rng.choice(FORMS).format(question, answer)


def person(rng: Random) -> str:
    return rng.choice(WORDS["surnames"]) + "".join(rng.choices(WORDS["given_names"], k=2))


def value(key: str, rng: Random) -> str:
    """Makes up a value for one of `KEYS`."""
    match key:
        case "name" | "team":
            return person(rng)
        case "phone":
            return f"09{rng.randint(0, 99_999_999):08}"
        case "item":
            return rng.choice(WORDS["goods"])
        case "count" | "price" | "code":
            return str(rng.randint(1, 9999))
        case "date":
            return f"{rng.randint(1, 12)}月{rng.randint(1, 31)}日"
        case "time":
            return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"
        case _:
            return "".join(rng.choices(HAN, k=rng.randint(1, 8)))


def gazetteer(rng: Random) -> str:
    """Says where a town lies, what its postcode is, or what a city consists of."""
    city, town = rng.choice(TOWNS)
    code = GAZETTEER[city][town]
    short = city.replace("臺", "台")
    return rng.choice([
        f"{code}{city}{town}",
        f"{city}{town}的郵遞區號是{code}。",
        f"{town}屬於{city}。" if town in UNIQUE_TOWNS else f"{city}有{town}。",
        f"{short}也寫作{city}。",
        f"{city}有{'、'.join(rng.sample(list(GAZETTEER[city]), min(5, len(GAZETTEER[city]))))}。",
    ])  # fmt: skip


def address(rng: Random) -> str:
    """An address as people write it."""
    return write(draw(rng, held_out=False), rng)


def address_question(rng: Random) -> str:
    """Asks for one part of an address, in words."""
    place = draw(rng, held_out=False)
    words, answer = rng.choice([("縣市", place.city), ("鄉鎮市區", place.town), ("路", place.road), ("路", place.road)])
    text = write(place, rng)
    return ask(rng.choice([f"{text}的{words}？", f"{words}：{text}", f"{text}，{words}是"]), answer, rng)


def copying(rng: Random) -> str:
    text = "".join(rng.choices(HAN if rng.random() < 0.8 else ASCII, k=rng.randint(2, 16)))
    return ask(rng.choice([f"重複：{text}", f"「{text}」再寫一次"]), text, rng)


def numerals(rng: Random) -> str:
    number = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 999)
    unit = rng.choice(["", "段", "路", "街", "巷", "號", "樓", "月", "個"])
    forms = [f"{number}{unit}", f"{chinese(number)}{unit}", f"{number}{unit}".translate(WIDE)]
    return "＝".join(rng.sample(forms, 2))


def record(rng: Random) -> str:
    """Turns a key-value list or a sentence into JSON, or reads one value back."""
    fields = {key: value(key, rng) for key in rng.sample(list(KEYS), rng.randint(1, 4))}
    in_json = json.dumps(fields, ensure_ascii=False)
    listed = rng.choice(["；", "，", " ", "\n"]).join(f"{KEYS[key]}：{text}" for key, text in fields.items())
    key = rng.choice(list(fields))
    kept = {k: fields[k] for k in rng.sample(list(fields), rng.randint(1, len(fields)))}
    return rng.choice([
        ask(listed, in_json, rng),
        ask(f"{listed} {'、'.join(kept)}", json.dumps(kept, ensure_ascii=False), rng),
        ask(in_json, listed, rng),
        ask(f"{in_json} {key}", fields[key], rng),
    ])  # fmt: skip


def word(rng: Random) -> str:
    english, mandarin = rng.choice(list(DICTIONARY.items()))
    return f"{english}：{mandarin}"


def document(rng: Random) -> str:
    """Draws one short document."""
    kinds = [address_question, record, copying, gazetteer, address, numerals, word]
    return rng.choices(kinds, [42, 20, 12, 12, 6, 6, 2])[0](rng)
