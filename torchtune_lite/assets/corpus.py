"""What the embedded base model reads before any fine-tuning: short documents, generated from a seed.

They teach what a general base model would bring: the characters, which town lies where (`gazetteer.json`), numerals, copying a
span, key-value lists and JSON, one-line questions and answers about people, shops and addresses. No document asks for the
demo's task: addresses are only ever asked about one part at a time, in words, and never answered in JSON; the addresses the
demo is tested on (`Address.held_out`) occur nowhere.
"""

import json
from random import Random

from torchtune_lite.assets.make_addresses import (
    FIRST,
    GAZETTEER,
    SECOND,
    STEMS,
    TOWNS,
    UNIQUE_TOWNS,
    VILLAGES,
    WIDE,
    chinese,
    draw,
    write,
)

SURNAMES = "陳林黃張李王吳劉蔡楊許鄭謝郭洪曾邱廖賴徐周葉蘇莊呂江何羅高"
GIVEN = "怡君雅婷志明俊傑淑芬美玲建宏家豪宗翰詩涵欣妤冠宇承恩品妍柏翰思穎佳蓉國強秀英文雄淑惠"
GOODS = "牛肉麵 珍珠奶茶 蛋餅 豆漿 雨傘 腳踏車 筆記本 咖啡 鳳梨酥 便當 水餃 課本 手機 書包 茶葉 芒果 蘋果 毛巾".split()
KEYS = {
    "name": "姓名", "phone": "電話", "item": "品項", "count": "數量", "price": "價格", "date": "日期",
    "shop": "店名", "color": "顏色", "team": "隊伍", "code": "代號", "place": "地點", "time": "時間",
}  # fmt: skip
WORDS = KEYS | {"city": "縣市", "town": "鄉鎮市區", "road": "路", "lane": "巷", "number": "號", "floor": "樓", "address": "地址"}
MORE = """
巖崗嶺坪坡墩塭墘圳潭洲嶼礁澳岸島岩峰峽谷泉池湳湧沙汕洋海濱浦渡船舟帆風雨雪雲霧雷電日月星辰天地人心手足口耳目
早晚今明年歲週時分秒左右上下內外前後遠近高低長短多少輕重新舊好壞快慢開關進出來去走跑坐立看聽說讀寫問答想知學教
父母兄弟姊妹兒女友師生客主王公子孫祖宗廟寺宮殿塔樓閣亭台院校館店廠市場局處所庫房屋牆窗床桌椅燈書畫筆紙墨茶酒飯
菜果米麥豆瓜桃李杏櫻桂菊荷蓮草花樹葉根枝木鐵銅鋼煤油火水土石馬牛羊豬狗貓雞鴨鵝魚蝦蟹鳥蟲龍虎獅象鹿熊兔猴鶴鷹
國軍警政法律稅銀行錢票股貨商買賣價工作職員司機車輪橋路站線港機場電話網址件信封箱包裹寄送取收付款單號碼第零萬千億
"""
HAN = sorted(set("".join(STEMS + VILLAGES + GOODS + list(WORDS.values())) + FIRST + SECOND + SURNAMES + GIVEN + "".join(MORE.split()))
             | set("".join(city + town for city, town in TOWNS)))  # fmt: skip
ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def ask(question: str, answer: str, rng: Random) -> str:
    """Joins the two as plain text, or as Llama 2's instruction format."""
    return rng.choice(["[INST] {} [/INST] {}", "[INST] {} [/INST] {}", "{}\n{}", "問：{}\n答：{}"]).format(question, answer)


def person(rng: Random) -> str:
    return rng.choice(SURNAMES) + "".join(rng.choices(GIVEN, k=2))


def value(key: str, rng: Random) -> str:
    """Makes up a value for one of `KEYS`."""
    match key:
        case "name" | "team":
            return person(rng)
        case "phone":
            return f"09{rng.randint(0, 99_999_999):08}"
        case "item":
            return rng.choice(GOODS)
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
    english, mandarin = rng.choice(list(WORDS.items()))
    return f"{english}：{mandarin}"


def document(rng: Random) -> str:
    """Draws one short document."""
    kinds = [address_question, record, copying, gazetteer, address, numerals, word]
    return rng.choices(kinds, [42, 20, 12, 12, 6, 6, 2])[0](rng)
