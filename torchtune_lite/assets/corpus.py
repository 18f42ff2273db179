"""The pretraining corpus of the embedded base model: texts, and questions with answers, made from a seed.

They teach what a general base model would bring: the characters, which town lies where (`gazetteer.json`), numerals,
copying a span, key-value lists and JSON, and what the parts of an address are. Nothing asks for the demo's task: an
address is only ever asked about one part at a time, in words, and never answered in JSON; the addresses the demo is
tested on (`Address.held_out`) occur nowhere.
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

QA = tuple[str, str]


def question(rng: Random) -> QA:
    """Draw one question and its answer."""
    return rng.choices([address_part, record, copying, numeral, translation], [64, 18, 10, 6, 2])[0](rng)


def address_part(rng: Random) -> QA:
    """Ask for one part of an address, in words."""
    place = draw(rng, held_out=False)
    part = rng.choice(["city", "town", "road", "road"])
    form = rng.choice(["{0}的{1}？", "{1}：{0}", "{0}，{1}是", "{1}？{0}"])
    return form.format(write(place, rng), PLACE_KEYS[part]), place.answer[part]


def record(rng: Random) -> QA:
    """Turn a key-value list into JSON or back, or asks for some of its values."""
    fields = {key: value(key, rng) for key in rng.sample(list(KEYS), rng.randint(1, 3))}
    kept = {key: fields[key] for key in rng.sample(list(fields), rng.randint(1, len(fields)))}
    in_json = json.dumps(fields, ensure_ascii=False)
    listed = rng.choice(["；", "，", " ", "\n"]).join(f"{KEYS[key]}：{text}" for key, text in fields.items())
    key = rng.choice(list(fields))
    return rng.choice([
        (listed, in_json),
        (f"{listed} {'、'.join(kept)}", json.dumps(kept, ensure_ascii=False)),
        (in_json, listed),
        (f"{in_json} {key}", fields[key]),
    ])  # fmt: skip


def value(key: str, rng: Random) -> str:
    """Make up a value for one of `KEYS`."""
    match key:
        case "name" | "team":
            return rng.choice(WORDS["surnames"]) + "".join(rng.choices(WORDS["given_names"], k=2))
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
            return "".join(rng.choices(HAN, k=rng.randint(1, 5)))


def copying(rng: Random) -> QA:
    """Ask for a span again."""
    text = "".join(rng.choices(HAN if rng.random() < 0.8 else ASCII, k=rng.randint(2, 8)))
    return rng.choice(["重複：{}", "「{}」再寫一次"]).format(text), text


def numeral(rng: Random) -> QA:
    """Ask for a number in other digits."""
    number = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 999)
    unit = rng.choice(["", "段", "路", "街", "巷", "號", "樓", "月", "個"])
    forms = {
        "數字": f"{number}{unit}",
        "中文數字": f"{chinese(number)}{unit}",
        "全形數字": f"{number}{unit}".translate(WIDE),
    }
    given, wanted = rng.sample(list(forms), 2)
    return f"{forms[given]}，{wanted}是", forms[wanted]


def translation(rng: Random) -> QA:
    """Ask for the name of a field in the other language."""
    english, mandarin = rng.choice(list(DICTIONARY.items()))
    return rng.choice([(f"{english} 的中文", mandarin), (f"{mandarin}的英文", english)])


def text(rng: Random) -> str:
    """Say where a town lies, what its postcode is, or what a city consists of; or gives an address."""
    city, town = rng.choice(TOWNS)
    code = GAZETTEER[city][town]
    return rng.choice([
        f"{code}{city}{town}",
        f"{city}{town}的郵遞區號是{code}。",
        f"{town}屬於{city}。" if town in UNIQUE_TOWNS else f"{city}有{town}。",
        f"{city.replace('臺', '台')}也寫作{city}。",
        f"{city}有{'、'.join(rng.sample(list(GAZETTEER[city]), min(5, len(GAZETTEER[city]))))}。",
        write(draw(rng, held_out=False), rng),
    ])  # fmt: skip
