import gzip
import os
import pickle
import random
import tempfile

import pytest

from torchtune_lite.data.readers import byte_files
from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.errors import DataError

DATA = random.Random(0).randbytes(3 * 2**20) + b"\nlast"


def test_reads_any_part_of_a_file_plain_or_packed(tmp_path, log_lines):
    (tmp_path / "x").write_bytes(DATA)
    (tmp_path / "x.gz").write_bytes(gzip.compress(DATA, 1) + gzip.compress(b"", 1))  # gzip files may be joined
    for file in (ByteFile(tmp_path / "x"), ByteFile(tmp_path / "x.gz")):
        assert file.size == len(DATA)
        assert file.read(5, 9) == DATA[5:9] and file.read(len(DATA) - 3, len(DATA) + 99) == DATA[-3:]
        assert file.read() == b"".join(file.chunks(1000)) == b"".join(file.lines()) == DATA
        assert file.read(7, 7) == b""
    assert [line.partition(" until")[0] for line in log_lines] == [
        f"{tmp_path / 'x.gz'}: unpacked into 3.1 MB of {tempfile.gettempdir()}"
    ]


def test_another_process_unpacks_its_own(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(DATA, 1))
    sent = pickle.dumps(ByteFile(tmp_path / "x.gz"))
    assert len(sent) < 1000 and pickle.loads(sent).read() == DATA


def test_lines_end_with_a_newline_alone(tmp_path):
    (tmp_path / "x").write_bytes(b"a\rb\x0bc\n\nd\r\ne")
    assert list(ByteFile(tmp_path / "x").lines()) == [b"a\rb\x0bc\n", b"\n", b"d\r\n", b"e"]


class Counted(bytes):
    """Bytes that count how many are copied when they are joined to others or split."""

    copied = 0

    def __radd__(self, other):
        Counted.copied += len(other) + len(self)
        return Counted(bytes(other) + bytes(self))

    def split(self, separator):
        Counted.copied += len(self)
        return super().split(separator)


@pytest.mark.parametrize("end", [b"", b"\n", b"\nb\n\nc"])
def test_a_long_line_costs_its_length(tmp_path, monkeypatch, end):
    """If joined chunk by chunk, a line of twice the chunks would be copied four times as much."""
    (tmp_path / "x").write_bytes(b"a" * 6400 + end)
    file, chunks, copied = ByteFile(tmp_path / "x"), ByteFile.chunks, []
    for size in (200, 100, 50):
        Counted.copied = 0
        monkeypatch.setattr(file, "chunks", lambda _, size=size: map(Counted, chunks(file, size)))
        assert list(file.lines()) == (b"a" * 6400 + end).splitlines(keepends=True)
        copied.append(Counted.copied)
    assert copied == [6400 + len(end)] * 3


def test_children_read_beside_their_parent(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(DATA, 1))
    (tmp_path / "y").write_bytes(DATA)
    files = [ByteFile(tmp_path / name) for name in ("x.gz", "y")]
    assert all(file.read(0, 2) == DATA[:2] for file in files)
    children = []
    for child in range(3):
        children.append(os.fork())
        if not children[-1]:
            places = [random.Random(child).randrange(len(DATA)) for _ in range(500)]
            os._exit(not all(file.read(at, at + 50) == DATA[at : at + 50] for file in files for at in places))
    assert all(file.read(at, at + 9) == DATA[at : at + 9] for file in files for at in range(0, 9000, 9))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_few_of_many_files_are_open_at_a_time(tmp_path):
    byte_files._opened.cache_clear()
    files = []
    for i in range(byte_files.MOST_OPEN + 20):
        (tmp_path / f"{i}").write_text(f"{i}")
        files.append(ByteFile(tmp_path / f"{i}"))
    before = len(os.listdir("/dev/fd"))
    assert [file.read() for file in files + files] == [str(i).encode() for i in range(len(files))] * 2
    assert len(os.listdir("/dev/fd")) <= before + byte_files.MOST_OPEN


@pytest.mark.parametrize(
    "packed",
    [b"not gzip", gzip.compress(DATA)[:-9], gzip.compress(b"x") + b"junk", b"\x1f\x8b"],
    ids=["another file", "its end missing", "more after it", "its start alone"],
)  # the bytes hold the time, which a name must not
def test_a_gzip_file_that_is_not_whole(tmp_path, packed):
    (tmp_path / "x.gz").write_bytes(packed)
    with pytest.raises(DataError, match="x.gz is not a complete gzip file .*; fetch or pack it again"):
        ByteFile(tmp_path / "x.gz")


def test_a_file_that_is_replaced_or_cut_under_way_is_noticed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    file = ByteFile(path)
    path.write_bytes(b"other")
    with pytest.raises(DataError, match="x was changed while it was being read; start the run again"):
        file.read()
    file = ByteFile(path)
    assert file.read(0, 1) == b"o"
    path.write_bytes(b"o")
    with pytest.raises(DataError, match="x was shortened"):
        file.read()


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="gone: No such file"):
        ByteFile(tmp_path / "gone")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"x"))

    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(byte_files.gzip, "open", refuse)
    with pytest.raises(DataError, match="cannot be unpacked into .* .No space left on device.; TMPDIR names another"):
        ByteFile(tmp_path / "x.gz")
