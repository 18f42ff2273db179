from torchtune_lite.data.readers.text_files import TextLines


def test_a_row_is_a_line_that_is_not_blank(tmp_path):
    (tmp_path / "x.txt").write_bytes(b'one document\r\n\r\n  {"two"}, tabs\t\n\nlast')
    rows = TextLines(tmp_path / "x.txt")
    assert [rows[i] for i in range(len(rows))] == [
        {"text": "one document"},
        {"text": '  {"two"}, tabs\t'},
        {"text": "last"},
    ]
    assert (rows.where(1), rows.name, rows.num_bytes) == (f"{tmp_path / 'x.txt'}:3", str(tmp_path / "x.txt"), 38)
