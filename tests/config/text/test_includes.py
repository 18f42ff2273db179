from pathlib import Path

import pytest

from torchtune_lite import catalog
from torchtune_lite.config.text import includes
from torchtune_lite.errors import ConfigError

BASE = """\
model:
  _component_: a.b
  rank: 8
  alpha: 16
xs: [1, 2]
named: {one: {_component_: a.b, x: 1}}
out: ${where}/x
"""


@pytest.fixture
def write(folder):
    def put(**files):
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        return folder

    return put


def read(name):
    return includes.read(Path(name), name)


def test_the_including_file_wins_and_mappings_are_merged_key_by_key(write):
    own = "model: {rank: 64, new: 1}\nxs: [3]\nnamed: {one: {x: 2}, two: null}\nz: 1\n"
    write(base=BASE, my=f"include: base.yaml\n{own}")
    assert read("my.yaml").values == {
        "model": {"_component_": "a.b", "rank": 64, "alpha": 16, "new": 1},
        "xs": [3],
        "named": {"one": {"_component_": "a.b", "x": 2}, "two": None},
        "out": "${where}/x",
        "z": 1,
    }


@pytest.mark.parametrize(
    ("own", "left"),
    [
        ("{_component_: a.b, rank: 64}", {"_component_": "a.b", "rank": 64, "alpha": 16}),
        ("{_component_: a.c, rank: 64}", {"_component_": "a.c", "rank": 64}),
        ("a.c", "a.c"),
        ("null", None),
        ("{}", {"_component_": "a.b", "rank": 8, "alpha": 16}),
    ],
)
def test_another_component_takes_the_place_of_the_included_one(own, left, write):
    write(base=BASE, my=f"include: base.yaml\nmodel: {own}\n")
    assert read("my.yaml").values["model"] == left


def test_each_key_is_placed_in_the_file_where_it_stands(write):
    write(base=BASE, middle="x: 1\ninclude: base.yaml\n", my="include: middle.yaml\nmodel:\n  alpha: 3\nxs: 3\n")
    doc = read("my.yaml")
    places = {
        ("model", "rank"): "base.yaml:3",
        ("model", "alpha"): "my.yaml:3",
        ("model",): "my.yaml:2",
        ("x",): "middle.yaml:1",
        ("xs", "0"): "my.yaml:4",
        ("named", "one", "x"): "base.yaml:6",
        ("nothing",): "my.yaml",
    }
    assert {path: doc.place(path) for path in places} == places


def test_a_path_is_relative_to_the_file_that_names_it(folder):
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/my.yaml").write_text("include: b/middle.yaml\n")
    (folder / "a/b/middle.yaml").write_text("include: ../base.yaml\n")
    (folder / "a/base.yaml").write_text("x: 1\n")
    doc = read("a/my.yaml")
    assert (doc.values, doc.place(("x",))) == ({"x": 1}, "a/b/../base.yaml:1")


def test_a_shipped_config_is_included_by_its_name(write):
    write(my="include: demo/address_qlora\nseed: 5\n")
    doc, shipped = read("my.yaml"), includes.read(catalog.configs()["demo/address_qlora"])
    assert doc.values == shipped.values | {"seed": 5}
    assert doc.place(("epochs",)).startswith("demo/address_qlora.yaml:")


def test_what_any_of_the_files_refers_to_is_the_users_own(write):
    write(base=BASE + "where: /a\n", my="include: base.yaml\nout: /b\n")
    assert "where" in read("my.yaml").own


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"my": "x: 1\ninclude: none.yaml\n"}, "my.yaml:2: 'include': there is no file none.yaml beside my.yaml"),
        ({"my": "include: qlroa\n"}, "my.yaml:1: 'include': there is no config 'qlroa'; did you mean 'qlora'?"),
        ({"my": "include: [a, b]\n"}, "my.yaml:1: 'include': expected the name of a config or the path of a YAML file"),
        ({"my": "include: my.yaml\n"}, "my.yaml:1: 'include': my.yaml includes itself"),
        (
            {"my": "include: a.yaml\n", "a": "include: b.yaml\n", "b": "x: 1\ninclude: a.yaml\n"},
            "b.yaml:2: 'include': a.yaml includes itself through b",
        ),
        ({"my": "include: /etc/x.yaml\n"}, "my.yaml:1: 'include': /etc/x.yaml is hidden, or lies neither beside"),
        ({"my": "include: ../x.yaml\n"}, "my.yaml:1: 'include': ../x.yaml is hidden, or lies neither beside"),
        ({"my": "include: .secret/x.yaml\n"}, "my.yaml:1: 'include': .secret/x.yaml is hidden, or lies neither"),
        ({"my": "include: a.yaml\n", "a": "b: [1\n"}, "a.yaml:2:1: "),
        ({"my": "include: a.yaml\n", "a": "- 1\n"}, "a.yaml: found a sequence; a config is a mapping of key: value"),
    ],
)
def test_what_cannot_be_included_is_said_in_one_line(files, message, write):
    write(**files)
    with pytest.raises(ConfigError) as error:
        read("my.yaml")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_link_that_leads_out_is_not_followed(write, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.yaml"
    outside.write_text("token: s3cret\n")
    (write(my="include: link.yaml\n") / "link.yaml").symlink_to(outside)
    with pytest.raises(ConfigError, match="link.yaml is hidden, or lies neither beside the config nor in the working"):
        read("my.yaml")
