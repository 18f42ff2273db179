import pytest

from torchtune_lite.config.text import document
from torchtune_lite.errors import ConfigError


def read(folder, content):
    path = folder / "my.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return document.read(path, "my.yaml")


def test_values_are_typed_and_interpolations_wait(folder):
    values = read(folder, "lr: 1e-5\nn: 3\non: true\nnone: null\nxs: [1, [a, 2.5]]\nout: ${lr}/x\n").values
    assert values == {"lr": 1e-5, "n": 3, True: True, "none": None, "xs": [1, ["a", 2.5]], "out": "${lr}/x"}


def test_each_key_knows_its_line_and_an_unknown_one_that_of_the_key_above(folder):
    doc = read(folder, "a: 1\nb:\n  c:\n    - d: 1\n    - d: 2\n")
    assert doc.place(("a",)) == "my.yaml:1"
    assert doc.place(("b", "c", "1", "d")) == "my.yaml:5"
    assert doc.place(("b", "nothing")) == "my.yaml:2"
    assert doc.place(("nothing",)) == "my.yaml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb:\n\tc: 2\n", "my.yaml:3:1: found a tab; YAML needs spaces"),
        ("", "my.yaml: the file is empty"),
        ("# only a comment\n", "my.yaml: the file is empty"),
        ("- a\n- b\n", "my.yaml: found a sequence; a config is a mapping of key: value"),
        ("just words", "my.yaml: found a scalar"),
        ("lr: 1\nb: 2\nlr: 3\n", r"my.yaml:3: duplicate key 'lr' \(first in line 1\)"),
        ("a: [1, 2\nb: 3\n", r"my.yaml:2:2: "),
        ("t: 1:30\n", "my.yaml:1: YAML reads 1:30 as another number; quote it: '1:30'"),
        ("a: {n: 00004}\n", "my.yaml:1: YAML reads 00004 as another number"),
        (b"a: \xff\n", "my.yaml: byte 3 is not UTF-8"),
        ("a: \x00\n", "my.yaml: "),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "my.yaml:1:4: the tag !!python/object/apply:os.system does not make",
        ),
        ("a: ${b\n", "my.yaml: "),
        ("a: " + "[" * 3000 + "]" * 3000, "my.yaml: nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(content, message, folder):
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        read(folder, content)
    assert "\n" not in str(error.value)


def test_all_duplicates_are_listed(folder):
    with pytest.raises(ConfigError) as error:
        read(folder, "a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert str(error.value).count("duplicate key") == 2


def test_a_byte_order_mark_is_no_part_of_the_first_key(folder):
    assert read(folder, b"\xef\xbb\xbfa: 1\n").values == {"a": 1}


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16-LE", "UTF-16-BE", "UTF-32", "UTF-32-LE", "UTF-32-BE"])
def test_another_encoding_is_named(encoding, folder):
    mark = "\ufeff" if "E" in encoding else ""
    with pytest.raises(ConfigError, match=f"^my.yaml: its encoding is {encoding[:6]}; save the file as UTF-8$"):
        read(folder, f"{mark}seed: 1\n".encode(encoding))


def test_a_billion_laughs_end_in_one_line(folder):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(ConfigError):
        read(folder, bomb)


def test_a_folder_is_no_config(folder):
    with pytest.raises(ConfigError, match="cannot read"):
        document.read(folder)
