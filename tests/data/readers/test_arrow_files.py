import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchtune_lite.data.readers.arrow_files import arrow_rows, parquet_rows
from torchtune_lite.errors import DataError

ROWS = [{"n": n, "messages": [{"role": "user", "content": f"é{n}", "weight": None}]} for n in range(25)]
TABLE = pa.Table.from_pylist(ROWS)


def write_parquet(path):
    pq.write_table(TABLE, path, row_group_size=10)


def write_file(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=10)


def write_stream(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=10)


@pytest.mark.parametrize(
    "write, read",
    [(write_parquet, parquet_rows), (write_file, arrow_rows), (write_stream, arrow_rows)],
    ids=["parquet", "arrow file", "arrow stream"],
)
def test_reads_rows_by_their_number(tmp_path, monkeypatch, log_lines, write, read):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "x"
    write(path)
    rows = read(path)
    assert [rows[i] for i in (24, 0, 9, 10)] == [ROWS[i] for i in (24, 0, 9, 10)] and len(rows) == 25
    assert rows.where(3) == f"{path}[3]" and rows.num_bytes > 0
    assert os.listdir(tmp_path / "temporary") == []
    assert [line for line in log_lines if "unpacked into" in line] == log_lines
    assert len(log_lines) == (write is write_parquet)
    for index in (25, -1):
        with pytest.raises(IndexError):
            rows[index]
    child = os.fork()
    if not child:
        os._exit([rows[i] for i in range(25)] != ROWS)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("read", [parquet_rows, arrow_rows])
def test_a_file_of_another_kind_or_without_rows(tmp_path, read):
    for content in (b"", b"PAR1", b"hello, world" * 99):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match="x: not (a readable Parquet|an Arrow) file") as error:
            read(tmp_path / "x")
        assert "\n" not in str(error.value)
    pq.write_table(TABLE[:0], tmp_path / "x")
    assert len(parquet_rows(tmp_path / "x")) == 0


def test_names_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow: pip install 'torchtune_lite\[data\]'"):
        parquet_rows(tmp_path / "x.parquet")
