import random

import pytest

from torchtune_lite.data.readers.byte_files import ByteFile
from torchtune_lite.data.readers.line_index import LineIndex
from torchtune_lite.errors import DataError


@pytest.fixture(params=[2**24, 1, 3, 7], ids="chunks of {}".format)
def index(request, tmp_path, monkeypatch):
    """Return the index of a file that is read in chunks of some size."""
    chunks = ByteFile.chunks
    monkeypatch.setattr(ByteFile, "chunks", lambda file: chunks(file, request.param))

    def make(content):
        (tmp_path / "x").write_bytes(content)
        return LineIndex(ByteFile(tmp_path / "x"))

    return make


def found(lines):
    return [(int(lines.place(i).rpartition(":")[2]), lines.text(i)) for i in range(len(lines))]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", []),
        (b"\n \t\r\n\n", []),
        (b"a", [(1, "a")]),
        (b"a\nbc\n", [(1, "a"), (2, "bc")]),
        (b"\n\na\n \n\r\n b \n\n\nc\n\n", [(3, "a"), (6, " b "), (9, "c")]),
        ("é\u2028\x0b市\r\nx".encode(), [(1, "é\u2028\x0b市\r"), (2, "x")]),
    ],
)
def test_finds_the_lines_that_are_not_blank(index, content, expected):
    assert found(index(content)) == expected


@pytest.mark.parametrize("content, expected", [(b"", []), (b"\n", []), (b"a\n", [(1, "a")]), (b"\n\nb", [(3, "b")])])
def test_leaves_a_byte_order_mark_out(tmp_path, content, expected):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + content)
    assert found(LineIndex(ByteFile(tmp_path / "x"))) == expected


def test_finds_what_a_plain_loop_finds(index):
    draw = random.Random(1)
    for _ in range(30):
        content = "".join(draw.choice("ab \t\n\n\ré") for _ in range(60))
        lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip(" \t\r")]
        assert found(index(content.encode())) == lines


def test_names_the_line_of_a_byte_that_is_no_text(tmp_path):
    (tmp_path / "x").write_bytes(b"\na\n\xe9\n")
    lines = LineIndex(ByteFile(tmp_path / "x"))
    assert lines.text(0) == "a"
    with pytest.raises(DataError, match="x:3: byte 0xe9 is not UTF-8"):
        lines.text(1)
    for i in (2, -1):
        with pytest.raises(IndexError):
            lines.text(i)
