import pytest

from torchtune_lite.errors import DataError
from torchtune_lite.evaluation.documents import Documents


def test_a_file_is_one_text_and_a_column_has_one_in_each_row(tmp_path):
    (tmp_path / "book.txt").write_bytes("\ufeff a\r\nb 市\n".encode())
    assert list(Documents(tmp_path / "book.txt")) == [" a\r\nb 市\n"]
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    assert list(Documents(tmp_path / "rows.jsonl", column="text")) == ["a", "b", "c"]
    assert list(Documents("json", str(tmp_path / "rows.jsonl"), "text", max_rows=2)) == ["a", "b"]


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"other": "b"}\n')
    for given, problem in (
        ({"source": tmp_path / "none.txt"}, "none.txt cannot be read: No such file"),
        ({"source": tmp_path / "empty.txt"}, "empty.txt has no text"),
        ({"source": tmp_path}, "cannot be read: Is a directory"),
        ({"source": tmp_path / "latin.txt"}, "latin.txt is not UTF-8 at byte 3"),
        ({"source": tmp_path / "latin.txt", "max_rows": 3}, "name the column"),
        ({"source": tmp_path / "rows.jsonl", "column": "text"}, "^[^:]*rows.jsonl:2: missing column 'text'"),
    ):
        with pytest.raises(DataError, match=problem):
            list(Documents(**given))
