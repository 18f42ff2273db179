"""Fingerprints of data: any changed row changes them, and moving the files does not."""

import csv
import gzip
import json
import os
import random
from pathlib import Path

import pytest
import torch

from torchtune_lite.data import ColumnText, PackedDataset, Rows, SFTDataset, load_rows
from torchtune_lite.data.batching import fingerprints
from torchtune_lite.data.batching.fingerprints import LOOKED_AT, row_hashes, samples_line
from torchtune_lite.data.readers import arrow_files
from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.data.readers.sources import HubRows
from torchtune_lite.datasets import concatenated
from torchtune_lite.errors import DataError

COUNT = 700
LOOKED_AT_ROWS = {k * COUNT // LOOKED_AT for k in range(LOOKED_AT)}
NOT_LOOKED_AT = [row for row in range(COUNT) if row not in LOOKED_AT_ROWS]


def texts(changed: int | None = None) -> list[dict[str, str]]:
    draw = random.Random(0)
    rows = [{"text": "".join(draw.choices("abc é", k=9)), "id": str(i)} for i in range(COUNT)]
    if changed is not None:
        rows[changed]["text"] += "!"
    return rows


def write(path: Path, rows: list[dict[str, str]], other_form: bool = False) -> Path:
    """Write rows in the form given by the name; `other_form` packs the same content in another way."""
    path.parent.mkdir(exist_ok=True)
    name = path.name.removesuffix(".gz")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith((".parquet", ".arrow")):
        import pyarrow as pa
        import pyarrow.parquet

        table = pa.Table.from_pylist(rows)
        if name.endswith(".parquet"):
            options = {"compression": "gzip", "row_group_size": 77, "use_dictionary": False} if other_form else {}
            pyarrow.parquet.write_table(table, path, **options)
        else:
            with (pa.ipc.new_stream if other_form else pa.ipc.new_file)(path, table.schema) as writer:
                writer.write_table(table, 50 if other_form else None)
        return path
    if name.endswith(".json"):
        lines = json.dumps(rows, indent=1 if other_form else None)
    elif name.endswith(".txt"):
        lines = "\n".join(row["text"] + "." for row in rows) + "\n" * other_form
    elif name.endswith(".csv"):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "id"], *([row["text"], row["id"]] for row in rows)])
        return path
    data = lines.encode()
    path.write_bytes(gzip.compress(data, 1 if other_form else 9, mtime=other_form) if path.suffix == ".gz" else data)
    return path


def codes(sample):
    return {"tokens": [ord(letter) for letter in sample["text"]] or [0, 0], "mask": [False] * len(sample["text"])}


def dataset(path: Path | str, **how) -> SFTDataset:
    return SFTDataset(load_rows(str(path), **how), ColumnText("text"), codes, on_bad_sample="skip")


KINDS = ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz"]


@pytest.mark.parametrize("name", KINDS)
def test_a_change_of_any_row_is_noticed(name, tmp_path):
    def known_by(rows):
        found = dataset(write(tmp_path / name, rows))
        return row_hashes(found), samples_line(found)

    hashes, line = known_by(texts())
    assert [each for each, _ in hashes] == [name] and line.startswith("700 samples with hash ")
    for changed in (0, NOT_LOOKED_AT[0], NOT_LOOKED_AT[200], COUNT - 1):
        after = known_by(texts(changed))
        assert after[0] != hashes and (after[1] == line) is (changed in NOT_LOOKED_AT), changed
    rows = texts()
    rows[5], rows[6] = rows[6], rows[5]
    assert known_by(rows)[0] != hashes


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_are_the_same_wherever_and_however_they_lie(name, tmp_path):
    path = write(tmp_path / name, texts())
    before = row_hashes(dataset(path))
    os.utime(path, (1, 1))
    assert row_hashes(dataset(path)) == before
    assert row_hashes(dataset(write(tmp_path / "moved" / name, texts(), other_form=True))) == before


def test_rows_in_a_file_are_those_in_several_and_in_packed_ones(tmp_path):
    whole = row_hashes(dataset(write(tmp_path / "a.jsonl", texts())))
    write(tmp_path / "parts" / "1.jsonl", texts()[:300])
    write(tmp_path / "parts" / "2.jsonl", texts()[300:])
    assert row_hashes(dataset(tmp_path / "parts"))[0][1] == whole[0][1]
    assert row_hashes(dataset(write(tmp_path / "b.jsonl.gz", texts())))[0][1] == whole[0][1]
    write(tmp_path / "parts" / "2.jsonl", texts(500)[300:])
    assert row_hashes(dataset(tmp_path / "parts"))[0][1] != whole[0][1]


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_are_not_chosen_do_not_count(name, tmp_path):
    def hashes(changed=None, **how):
        return row_hashes(dataset(write(tmp_path / name, texts(changed)), **how))[0][1]

    assert hashes(split="train[:90%]") == hashes(650, split="train[:90%]") != hashes(600, split="train[:90%]")
    assert hashes(split="train[-70:]") == hashes(600, split="train[-70:]") != hashes(650, split="train[-70:]")
    if name != "a.txt":
        few = {"filter_fn": lambda row: int(row["id"]) % 7 < 3}
        assert hashes(**few) == hashes(697, **few) != hashes(694, **few)
        some = {**few, "split": "train[100:200]"}
        assert hashes(**some) == hashes(90, **some) == hashes(104, **some) != hashes(106, **some)


def test_of_several_data_sets_it_is_known_which_one_was_changed(tmp_path):
    first, second = write(tmp_path / "a.jsonl", texts()), write(tmp_path / "b.csv", texts())
    before = row_hashes(concatenated([dataset(first), dataset(second)]))
    write(second, texts(3))
    after = row_hashes(concatenated([PackedDataset(dataset(each), 5) for each in (first, second)]))
    assert [name for name, _ in after] == ["a.jsonl", "b.csv"]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


class OnesOwn:
    """A user's own data set, of tensors."""

    def __init__(self, count, changed=None):
        self.count, self.changed = count, changed

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        tokens = torch.arange(2000) + (i == self.changed)
        return {"tokens": tokens, "labels": [*tokens.tolist()[1:], -100]}


class Broken(OnesOwn):
    """A data set whose fourth sample is malformed."""

    def __getitem__(self, i):
        return super().__getitem__(i) if i != 3 else ([1, 2], [2, -100])


def test_what_a_data_set_of_ones_own_is_made_of_is_its_own_affair():
    first, second = torch.utils.data.Subset(OnesOwn(9), [0, 1]), torch.utils.data.Subset(OnesOwn(9), [0, 2])
    assert [name for name, _ in row_hashes(first)] == ["Subset"] and row_hashes(first) == row_hashes(second)
    second.dataset = OnesOwn(9, changed=2)
    assert row_hashes(first) != row_hashes(second)
    joined = torch.utils.data.ConcatDataset([first, second])
    assert len(row_hashes(joined)) == 1


def test_of_a_data_set_of_ones_own_all_samples_are_hashed_or_it_is_said(monkeypatch, log_lines):
    assert row_hashes(OnesOwn(9)) == row_hashes(OnesOwn(9)) != row_hashes(OnesOwn(9, changed=3))
    found = [row_hashes(concatenated(OnesOwn(9, changed)))[0] for changed in (None, None, 3)]  # as a recipe has it
    assert found[0] == found[1] != found[2] and found[0][0] == "OnesOwn"
    with pytest.raises(DataError, match=r"^dataset \(Broken\): sample 3 must be a mapping with 'tokens' and 'labels'"):
        row_hashes(concatenated(Broken(9)))
    monkeypatch.setattr(fingerprints, "MOST_SAMPLES", 8)
    assert row_hashes(OnesOwn(9)) == [("OnesOwn", None)]
    assert log_lines == [
        "dataset OnesOwn: of its 9 samples, 256 are compared when this run is resumed; a change of others will not be "
        "noticed"
    ]


class Hub:
    """A data set with the interface of the library `datasets`."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]

    def with_format(self, kind):
        import pyarrow as pa

        assert kind == "arrow"
        return Hub(pa.Table.from_pylist(self.rows)) if isinstance(self.rows, list) else self


def test_a_data_set_of_the_hub_is_hashed_in_arrows_form(monkeypatch):
    def hashes(rows):
        return row_hashes(SFTDataset(HubRows("org/name", Hub(rows), str), ColumnText("text"), codes))

    monkeypatch.setattr(Hub, "__getitem__", lambda self, i: self.rows[i])
    before = hashes(texts())
    assert before[0][0] == "name" and before == hashes(texts()) != hashes(texts(NOT_LOOKED_AT[9]))
    assert before[0][1] == row_hashes(SFTDataset(HubRows("o/n", Hub(texts()), str), ColumnText("text"), codes))[0][1]


def test_values_of_any_type_are_hashed(tmp_path):
    import pyarrow as pa

    def found(rows):
        return b"".join(map(bytes, arrow_files.table_content(pa.Table.from_pylist(rows))))

    rows = [
        {"m": [{"role": "u", "content": "é"}], "n": 1, "b": True, "x": None, "f": 0.5, "y": b"z"},
        {"m": None, "n": None, "b": False, "x": None, "f": 1.5, "y": None},
        {"m": [], "n": 2, "b": None, "x": None, "f": None, "y": b""},
    ]
    seen = {found(rows)}
    for row, key, value in [
        *((0, "m", other) for other in (None, [], [{"role": "u", "content": "e"}], [{"role": None, "content": "é"}])),
        *((1, "m", []), (2, "m", None), (0, "n", 0), (1, "n", 0), (1, "b", None), (2, "f", 0.0), (1, "y", b"")),
    ]:
        changed = [dict(each) for each in rows]
        changed[row][key] = value
        seen.add(found(changed))
    assert len(seen) == 12
    dictionary = pa.table({"a": pa.array(["x", None, "x"]).dictionary_encode()})
    assert list(arrow_files.table_content(dictionary)) == list(
        arrow_files.table_content(pa.table({"a": ["x", None, "x"]}))
    )


def test_rows_of_another_class_are_read_one_by_one(tmp_path):
    class Other:
        name, num_bytes = "x", 0

        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            return self.rows[i]

        def where(self, i):
            return str(i)

    def hashes(kind, rows):
        return row_hashes(SFTDataset(kind(rows), ColumnText("text"), codes))[0][1]

    as_rows = hashes(lambda rows: Rows("x", rows, str), texts())
    assert hashes(Other, texts()) == as_rows != hashes(Other, texts(1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_the_cost_is_one_reading_of_the_file(name, tmp_path, monkeypatch):
    found = dataset(write(tmp_path / name, texts()))
    read, reads = [], ByteFile.read
    monkeypatch.setattr(ByteFile, "read", lambda self, *part: read.append(reads(self, *part)) or read[-1])
    row_hashes(found)
    header = len("text,id\r\n") * (name == "a.csv")
    assert sum(map(len, read)) == (tmp_path / name).stat().st_size - header and len(read) == 1
