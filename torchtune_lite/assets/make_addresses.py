"""Writes the demo's data: Taiwanese addresses as people write them, and the JSON that names city, town and road.

    python -m torchtune_lite.assets.make_addresses --out torchtune_lite/assets

The cities and counties, their districts and towns, and the 3-digit postcodes are real (`gazetteer.json`); the road names are
plausible ones. A row is `{"input": address, "output": JSON}`. In the output:

- `city` and `town` have their official form, 臺 never 台; a city that the address leaves out (only where the town's name is
  unique) is filled in.
- `road` is the road with its section, numerals in Chinese (中山路3段 → 中山路三段, 中山1路 → 中山一路) and 臺 for 台. Lane 巷,
  alley 弄, number 號, floor 樓, village 里/村 and neighbourhood 鄰 are left out.

Each (city, town, road) belongs to the train or the test side by a hash of its name, so no triple is ever on both sides,
whatever the seeds and sizes.
"""

import argparse
import hashlib
import json
from pathlib import Path
from random import Random
from typing import NamedTuple

GAZETTEER: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("gazetteer.json").read_text(encoding="utf-8"))
TOWNS = [(city, town) for city, towns in GAZETTEER.items() for town in towns]
UNIQUE_TOWNS = {town for _, town in TOWNS if sum(town == other for _, other in TOWNS) == 1}
STEMS = """中正 中山 中華 中央 中興 民生 民權 民族 民治 忠孝 忠義 仁愛 仁德 信義 信德 和平 和美 復興 光復 光華 光明 建國 建業 自由 自強
博愛 林森 南京 北平 重慶 成都 長安 長春 松江 吉林 新生 新民 新興 新榮 敦化 基隆 羅斯福 文化 文心 文林 文昌 三民 三多 四維 五福 六合 七賢
八德 九如 十全 一心 二聖 大同 大業 大勇 大豐 成功 成德 勝利 崇德 崇善 永和 永福 永康 永安 安和 安平 延平 延吉 莊敬 水源 水利 環河 環中
興隆 興安 興業 木柵 石牌 天母 承德 公園 公正 公益 學府 學士 育才 育英 健康 健行 東興 東榮 西門 西藏 南門 南昌 北門 北新 府前 府後
縣府 站前 車站 鐵道 工業 農權 農安 漁港 港口 海濱 海安 河堤 溪頭 山腳 瑞光 瑞豐 明德 明倫 明誠 福德 福星 福興 裕農 裕民 華夏 華南 青年
青海 青島 向上 向陽 東山 太平 太原 進學 進化 進德 精武 精誠 漢口 漢民 河北 河南 遼寧 寧夏 甘肅 四川 廣東 廣州 福州 杭州 西湖 錦州 錦西
撫遠 昆明 桂林 貴陽 康定 康寧 成泰 集賢 集美 龍江 龍門 龍安 鳳林 鳳北 虎林 鹿港 馬公 牛埔 羊稠 臺灣 臺林 臺東 新臺 市府 德惠 德昌 德賢""".split()
FIRST = "大小東西南北中正新永福興安和美光明德文武忠信義仁豐富建國民生金銀玉石竹松梅蘭春夏秋冬青白黃紅高平長廣太復成"
SECOND = "安和平興隆昌盛榮華美麗光明德福祿壽喜園林山水河溪港灣橋門城田坑湖崙厝寮埔竹松柏梅蘭義信仁愛勇智賢才英雄業學文化"
VILLAGES = "光 明 興 和 安 福 德 仁 義 東 西 南 北 中 新 大 永 豐 華 美 龍 溪 湖 山".split()
NOTES = ["管理室", "警衛室代收", "全家便利商店", "近車站", "對面", "後棟", "請按電鈴", "夜間勿送"]
DIGITS = "〇一二三四五六七八九"
WIDE = str.maketrans("0123456789-() ,", "０１２３４５６７８９－（）　，")


class Address(NamedTuple):
    """The parts of an address that the demo asks for; `section` 0 and `ordinal` 0 mean none (中山一路 has ordinal 1)."""

    city: str
    town: str
    stem: str
    ordinal: int
    kind: str
    section: int

    @property
    def road(self) -> str:
        return road(self, chinese)

    @property
    def answer(self) -> dict[str, str]:
        return {"city": self.city, "town": self.town, "road": self.road}

    @property
    def held_out(self) -> bool:
        """True for one triple in sixteen: these are only ever tested on."""
        return hashlib.sha256(" ".join(self.answer.values()).encode()).digest()[0] < 16


def chinese(number: int) -> str:
    """Spells 1 to 999 as it is spoken: 12 → 十二, 120 → 一百二十, 305 → 三百零五."""
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    head = f"{DIGITS[hundreds]}百" + ("零" if rest and not tens else "") if hundreds else ""
    ten = (DIGITS[tens] if hundreds or tens > 1 else "") + "十" if tens else ""
    return head + ten + (DIGITS[ones] if ones else "")


def road(address: Address, numeral) -> str:
    ordinal = numeral(address.ordinal) if address.ordinal else ""
    section = f"{numeral(address.section)}段" if address.section else ""
    return f"{address.stem}{ordinal}{address.kind}{section}"


def draw(rng: Random, held_out: bool) -> Address:
    """Draws one address of the train or of the test side."""
    while True:
        city, town = rng.choice(TOWNS)
        stem = rng.choice(STEMS) if rng.random() < 0.5 else rng.choice(FIRST) + rng.choice(SECOND)
        kind = rng.choices(["路", "街", "大道"], [65, 30, 5])[0]
        form = rng.random()
        if kind == "路" and form < 0.2:
            stem += rng.choice("東西南北中")
        ordinal = rng.randint(1, 6) if kind != "大道" and 0.2 < form < 0.3 else 0
        section = rng.choices(range(1, 10), [9, 9, 6, 4, 2, 1, 1, 1, 1])[0] if kind != "街" and rng.random() < 0.5 else 0
        address = Address(city, town, stem, ordinal, kind, section)
        if address.held_out == held_out:
            return address


def write(address: Address, rng: Random) -> str:
    """Writes an address as one person might: with what they leave out, add, abbreviate and mistype on purpose."""
    arabic = chinese if rng.random() < 0.1 else str
    in_road = rng.choices([chinese, str], [55, 45])[0]
    postcode = GAZETTEER[address.city][address.town] + rng.choice(["", "", f"{rng.randint(0, 99):02}", f"{rng.randint(0, 999):03}"])
    postcode = rng.choice(["", "", "", "{} ", "{}", "{}", "({})", "〒{} ", "{}-"]).format(postcode)
    country = rng.choices(["", "臺灣", "臺灣省", "中華民國"], [94, 3, 2, 1])[0]
    city = "" if address.town in UNIQUE_TOWNS and rng.random() < 0.05 else address.city
    village = f"{rng.choice(VILLAGES)}{rng.choice(VILLAGES)}{'里' if address.town[-1] != '鄉' else '村'}" if rng.random() < 0.2 else ""
    neighbourhood = f"{arabic(rng.randint(1, 30))}鄰" if village and rng.random() < 0.6 else ""
    lane = f"{arabic(rng.randint(1, 600))}巷" if rng.random() < 0.4 else ""
    alley = f"{arabic(rng.randint(1, 80))}弄" if lane and rng.random() < 0.4 else ""
    number = arabic(rng.randint(1, 800))
    number += rng.choices(["號", f"之{arabic(rng.randint(1, 30))}號", f"號之{arabic(rng.randint(1, 30))}", f"-{rng.randint(1, 30)}號"], [7, 1, 1, 1])[0]
    floor = rng.choice(["{}樓", "{}樓", "{}F", "{}樓之{}"]).format(arabic(rng.randint(1, 28)), rng.randint(1, 12)) if rng.random() < 0.4 else ""
    note = rng.choice(["({})", " {}", ",{}"]).format(rng.choice(NOTES)) if rng.random() < 0.1 else ""
    gap = rng.choices(["", " ", ",", "-"], [80, 12, 6, 2])[0]
    parts = [country, city, address.town, village + neighbourhood, road(address, in_road), lane + alley, number + floor]
    text = postcode + gap.join(part for part in parts if part) + note
    if rng.random() < 0.6:
        text = text.replace("臺", "台")
    return text.translate(WIDE) if rng.random() < 0.12 else text


def rows(count: int, rng: Random, held_out: bool) -> list[dict[str, str]]:
    """`count` rows, no (city, town, road) twice."""
    drawn: dict[tuple[str, ...], Address] = {}
    while len(drawn) < count:
        address = draw(rng, held_out)
        drawn.setdefault(tuple(address.answer.values()), address)
    return [{"input": write(a, rng), "output": json.dumps(a.answer, ensure_ascii=False)} for a in drawn.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for addresses_train.jsonl and addresses_test.jsonl")
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
