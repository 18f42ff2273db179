import pytest

from torchtune_lite.data.readers.csv_files import CsvRows
from torchtune_lite.data.readers.json_files import json_rows
from torchtune_lite.data.readers.text_files import TextLines
from torchtune_lite.errors import DataError

READERS = {"x.jsonl": json_rows, "x.json": json_rows, "x.csv": CsvRows, "x.txt": TextLines}
TEXTS = {
    "x.jsonl": '{"input": "¿Qué?", "output": "市"}\n{"input": "b", "output": "c"}\n',
    "x.json": '[{"input": "¿Qué?", "output": "市"}]\n',
    "x.csv": "input,output\n¿Qué?,市\n",
    "x.txt": "input: ¿Qué? 市\n",
}
OTHERS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("name", READERS)
def test_other_encodings_are_named_with_what_to_do(name, tmp_path):
    path = tmp_path / name
    for encoding in OTHERS:
        path.write_bytes(TEXTS[name].encode(encoding))
        said = encoding[:6].upper()
        with pytest.raises(DataError, match=f"{name} is {said}; save it as UTF-8, e.g. iconv -f {said} -t UTF-8$"):
            READERS[name](path)
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(TEXTS[name].encode(encoding))
        assert "市" in str(READERS[name](path)[0])


def test_an_array_under_a_field_and_a_single_row_are_refused_too(tmp_path):
    (tmp_path / "x.json").write_text('{"data": [{"a": "b"}]}', encoding="utf-16")
    for field in ("data", None):
        with pytest.raises(DataError, match="is UTF-16"):
            json_rows(tmp_path / "x.json", field)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
def test_lines_that_end_with_a_carriage_return_alone(name, tmp_path):
    (tmp_path / name).write_bytes(TEXTS[name].replace("\n", "\r").encode())
    with pytest.raises(DataError, match=r"its lines end with a carriage return alone; convert it, e.g. tr '\\r' '\\n'"):
        READERS[name](tmp_path / name)
    (tmp_path / name).write_bytes(TEXTS[name].replace("\n", "\r\n").encode())
    assert len(READERS[name](tmp_path / name))


@pytest.mark.parametrize("name", READERS)
def test_windows_letters_are_named_with_their_line(name, tmp_path):
    (tmp_path / name).write_bytes(TEXTS[name].replace("市", "é").encode("cp1252"))
    with pytest.raises(DataError, match=rf"{name}:\d: byte 0x(bf|e9) is not UTF-8; .* iconv -f CP1252 -t UTF-8"):
        READERS[name](tmp_path / name)[0]
