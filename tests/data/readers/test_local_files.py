import gzip
import json

import pytest

from torchtune_lite.data.readers.local_files import find_files, read_files
from torchtune_lite.errors import DataError


def read(patterns, kind=None, field=None):
    rows = read_files(find_files(patterns), kind, field)
    return [rows[i] for i in range(len(rows))]


@pytest.fixture
def files(folder):
    """Write files, by name, with their content."""

    def write(**contents):
        for name, content in contents.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())

    return write


def test_reads_each_kind_by_the_end_of_its_name(files):
    files(
        a_jsonl='{"n": 1}',
        a_ndjson='{"n": 2}',
        a_json='[{"n": 3}]',
        a_csv="n\n4\n",
        a_tsv="n\tm\n5\t\n",
        a_txt="n: 6\n",
        a_jsonl_gz='{"n": 7}',
        a_json_gz='[{"n": 8}]',
        a_csv_gz="n\n9\n",
        a_tsv_gz="n\tm\n10\t\n",
    )
    assert read(["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.gz"]) == [{"n": n} for n in (1, 2, 3, 7, 8)]
    assert read(["a.csv", "a.csv.gz"]) == [{"n": "4"}, {"n": "9"}]
    assert read(["a.tsv", "a.tsv.gz"]) == [{"n": "5", "m": ""}, {"n": "10", "m": ""}]
    assert read("a.txt") == [{"text": "n: 6"}]
    assert read("a.json", "json", None) == read("a.txt".replace("txt", "json")) == [{"n": 3}]


def test_a_named_kind_reads_files_of_any_other_name(files):
    files(rows='{"n": 1}', rows_txt='{"n": 2}', rows_v2='{"n": 3}')
    assert read(["rows", "rows.txt", "rows.v2"], "json") == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_folder_is_its_files_in_order(files):
    files(data__b_jsonl='{"n": 2}', data__a_jsonl_gz='{"n": 1}', data___c_jsonl="hidden", data__README="x")
    assert read("data") == [{"n": 1}, {"n": 2}]
    assert read("da*/*.jsonl") == [{"n": 2}]


def test_what_datasets_saved_to_disk(folder):
    """The layout of `Dataset.save_to_disk`, whose state.json lists the files; others may lie beside them."""
    pa = pytest.importorskip("pyarrow")
    (folder / "saved").mkdir()
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    for n, name in enumerate(names):
        table = pa.table({"n": [n]})
        with pa.ipc.new_stream(folder / "saved" / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "saved/dataset_info.json").write_text("{}")
    (folder / "saved/cache-1.arrow").write_text("")
    assert read("saved") == read("saved", "arrow") == [{"n": 0}, {"n": 1}]
    (folder / "saved/state.json").write_text("{")
    with pytest.raises(DataError, match="state.json is not JSON"):
        read("saved")


@pytest.mark.parametrize("address", ["https://a.b/c.jsonl", "s3://a/b.parquet", "HTTP://a.b/*.csv"])
def test_an_address_is_no_file(address):
    with pytest.raises(DataError, match="is an address, and only local files are read; download the file first, or"):
        find_files(address)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"patterns": []}, "data_files is an empty list"),
        ({"patterns": "gone.jsonl"}, "no file matches 'gone.jsonl' .cwd /"),
        ({"patterns": "mixed"}, r"several kinds \(csv, json\), from mixed/a.csv on; .* e.g. mixed/\*.csv"),
        ({"patterns": "split"}, r"several splits \(test, train\); .* data_files: {train: split/FILE"),
        ({"patterns": "none"}, "folder none has no file that ends in .json, .jsonl"),
        ({"patterns": "x.zip"}, "x.zip: .zip is not unpacked here; unpack it first"),
        ({"patterns": "x.parquet.gz"}, "x.parquet.gz: .gz is not unpacked here"),
        ({"patterns": "none/README"}, "README: its name ends in none of .json, .*; set source to its kind"),
        ({"patterns": "mixed/a.csv", "kind": "json"}, "a.csv is csv, and source says json; set source: csv"),
        ({"patterns": "mixed/a.csv", "field": "data"}, "field='data' is for JSON files, and mixed/a.csv is csv"),
        ({"patterns": ["mixed/b.jsonl", "none/empty.jsonl.txt"], "kind": "json"}, "empty.jsonl.txt: 0 samples"),
    ],
)
def test_says_what_is_wrong_with_files(files, folder, given, message):
    files(mixed__a_csv="n\n1", mixed__b_jsonl='{"n": 1}', x_zip="x", x_parquet_gz="x", none__README="x")
    files(split__rows_train_jsonl="{}", split__test_00000_of_1_jsonl="{}")
    (folder / "empty").mkdir()
    if "empty" in str(given):
        (folder / "none/empty.jsonl.txt").write_text("\n")
    with pytest.raises(DataError, match=message):
        read(**given)
