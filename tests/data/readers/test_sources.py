import os
import sys
from types import SimpleNamespace

import pytest

from torchtune_lite.data import load_rows
from torchtune_lite.errors import ConfigError, DataError


def numbers(rows):
    return [rows[i]["n"] for i in range(len(rows))]


@pytest.fixture
def ten(jsonl):
    return jsonl([{"n": n} for n in range(10)])


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[8:]", range(8, 10)),
        ("train[2:4]", range(2, 4)),
        ("train[-2:]", range(8, 10)),
        ("train[:-7]", range(3)),
        ("train[:95%]", range(10)),  # 9.5 rounds to the even number, as in `datasets`
        ("train[85%:]", range(8, 10)),
        ("train[-20%:]", range(8, 10)),
        ("train[:99]", range(10)),
    ],
)
def test_split_takes_a_part(ten, split, expected):
    assert numbers(load_rows("json", data_files=ten, split=split)) == list(expected)


@pytest.mark.parametrize("split", ["train[3:3]", "train[99:]", "train[5:2]"])
def test_an_empty_part_is_an_error(ten, split):
    with pytest.raises(DataError, match=r"rows.jsonl: 0 samples in split='train\["):
        load_rows(ten, split=split)


@pytest.mark.parametrize("split", ["train+test", "train[1]", "train[:5.5%]", "[:5]", ""])
def test_a_split_that_is_no_part_is_an_error(ten, split):
    with pytest.raises(DataError, match="is neither a name nor a part"):
        load_rows(ten, split=split)


def test_a_part_keeps_the_places_of_its_rows(ten):
    rows = load_rows(ten, split="train[4:]", filter_fn=lambda row: row["n"] % 2)
    assert numbers(rows) == [5, 7, 9]
    assert [rows.where(i) for i in range(3)] == [f"{ten}:{line}" for line in (6, 8, 10)]


@pytest.mark.parametrize("source", ["json", "jsonl", "ndjson"])
def test_a_kind_may_be_called_by_an_ending(ten, source):
    assert numbers(load_rows(source, data_files=ten)) == list(range(10))
    with pytest.raises(DataError, match=f"source: {source} needs data_files"):
        load_rows(source)


def test_splits_that_datasets_saved_to_disk(jsonl, tmp_path):
    (tmp_path / "dd").mkdir()
    for n, split in enumerate(["train", "test"]):
        (tmp_path / "dd" / split).mkdir()
        jsonl([{"n": n}, {"n": n + 10}], f"dd/{split}/rows.jsonl")
    (tmp_path / "dd/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert numbers(load_rows(str(tmp_path / "dd"))) == [0, 10]
    assert numbers(load_rows("json", data_files=str(tmp_path / "dd"), split="test[:1]")) == [1]
    with pytest.raises(DataError, match="split='val': local files have only train, test"):
        load_rows(str(tmp_path / "dd"), split="val")


def test_an_address_is_no_source():
    with pytest.raises(DataError, match="https://hf.co/datasets/a/b is an address, .* as source: owner/name"):
        load_rows("https://hf.co/datasets/a/b")


def test_one_file_several_a_pattern_and_files_by_split(jsonl, tmp_path):
    a, b = jsonl([{"n": 1}, {"n": 2}], "a.jsonl"), jsonl([{"n": 3}], "b.jsonl")
    for files in ([a, b], [b, a]):
        rows = load_rows("json", data_files=files)
        assert sorted(numbers(rows)) == [1, 2, 3]
        assert numbers(rows)[0] == (1 if files[0] == a else 3)
        assert rows.where(2) == (f"{b}:1" if files[0] == a else f"{a}:2")
        assert rows.name == f"{files[0]} and 1 more file"
    assert numbers(load_rows("json", data_files=str(tmp_path / "*.jsonl"))) == [1, 2, 3]
    assert numbers(load_rows(str(tmp_path / "[b].jsonl"))) == [3]
    assert numbers(load_rows("json", data_files={"train": a, "val": [b]}, split="val")) == [3]


def test_a_path_is_relative_to_the_working_directory(jsonl, tmp_path, monkeypatch):
    jsonl([{"n": 1}], "rows.json")
    monkeypatch.chdir(tmp_path)
    rows = load_rows("rows.json")
    assert numbers(rows) == [1] and rows.where(0) == "rows.json:1"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"source": "json"}, "source: json needs data_files"),
        ({"source": "json", "data_files": []}, "data_files is an empty list"),
        ({"source": "no/such.jsonl"}, r"no file matches 'no/such.jsonl' \(cwd /"),
        ({"source": "json", "data_files": "no/*.jsonl"}, r"no file matches 'no/\*.jsonl'"),
        ({"source": "csv"}, "source: csv needs data_files"),
        ({"source": "gone.parquet"}, "no file matches 'gone.parquet'"),
        ({"source": "gone.zip"}, "no file matches 'gone.zip'"),
        ({"source": "rows.jsonl", "data_files": "rows.jsonl"}, "is a file itself"),
        ({"source": "rows.jsonl", "split": "test"}, "split='test': local files have only train"),
        ({"source": "rows.jsonl", "filter_fn": lambda row: False}, "0 samples in split='train' after filter_fn"),
    ],
)
def test_says_what_is_wrong_with_a_source(jsonl, tmp_path, monkeypatch, given, message):
    jsonl([{"n": 1}])
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load_rows(**given)
    assert "\n" not in str(error.value)


def test_a_hub_name_needs_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="'tatsu-lab/alpaca' is not a local file, .* pip install datasets"):
        load_rows("tatsu-lab/alpaca")


def test_a_hub_name_goes_to_the_library_with_what_was_given(monkeypatch):
    asked = []

    def load_dataset(source, **options):
        asked.append((source, options))
        if source == "a/broken":
            raise ConnectionError("no route\nto the hub")
        return [{"n": 1}, {"n": 2}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = load_rows("a/b", name="main", split="test[:2]", filter_fn=lambda row: row["n"] == 2)
    assert asked == [("a/b", {"split": "test[:2]", "name": "main"})]
    assert numbers(rows) == [2] and rows.where(0) == "a/b[1]"
    with pytest.raises(DataError, match=r"'a/broken': the library 'datasets' cannot load it \(no route\)$"):
        load_rows("a/broken")


@pytest.mark.parametrize(("given", "used"), [(None, "0"), ("1", "1")])
def test_no_script_of_a_data_set_of_the_hub_is_run_unless_the_user_says_so(given, used, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", given or "")
    if given is None:
        monkeypatch.delenv("HF_DATASETS_TRUST_REMOTE_CODE")
    seen = []

    def load_dataset(source, **options):
        seen.append(os.environ["HF_DATASETS_TRUST_REMOTE_CODE"])
        return [{"n": 1}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    load_rows("a/b")
    assert seen == [used]


def test_a_filter_may_be_named_by_its_dotted_path(jsonl, folder):
    path = jsonl([{"n": n} for n in range(4)])
    (folder / "own_filters.py").write_text("def odd(row): return row['n'] % 2\n")
    rows = load_rows(path, filter_fn="own_filters.odd")
    assert [rows[i]["n"] for i in range(len(rows))] == [1, 3]
    with pytest.raises(ConfigError, match="'os.system' is not an allowed component"):
        load_rows(path, filter_fn="os.system")


def test_a_filter_leaves_broken_rows_to_whoever_reads_them(folder):
    (folder / "x.jsonl").write_text('{"n": 0}\nno\n{"n": 1}\n{"n": 2}\n')
    rows = load_rows("x.jsonl", split="train[1:]", filter_fn=lambda row: row["n"] > 1)
    assert (len(rows), rows[1], rows.where(0), rows.where(1)) == (2, {"n": 2}, "x.jsonl:2", "x.jsonl:4")
    with pytest.raises(DataError, match="x.jsonl:2:1: invalid JSON"):
        rows[0]


def test_each_kind_by_its_name_and_a_folder(folder):
    (folder / "data").mkdir()
    (folder / "data/a.csv").write_text("n\n1\n")
    (folder / "data/b.csv").write_text("n\n2\n")
    for source in ({"source": "data"}, {"source": "csv", "data_files": "data"}, {"source": "data/*.csv"}):
        assert numbers(load_rows(**source)) == ["1", "2"]
