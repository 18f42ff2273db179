import pytest
from omegaconf import OmegaConf

from torchtune_lite.config.text import interpolation
from torchtune_lite.config.text.document import Document
from torchtune_lite.errors import ConfigError


def resolve(values, origins=()):
    doc = Document("my.yaml", values, dict(origins))
    return interpolation.resolve(doc), doc.values


def test_references_stand_for_their_values_at_any_depth(monkeypatch):
    monkeypatch.setenv("WHERE", "/data")
    values = {
        "out": "runs",
        "log": {"dir": "${out}/logs"},
        "xs": ["${log.dir}", 1],
        "m": "${log}",
        "e": "${oc.env:WHERE}",
    }
    assert resolve(values) == (
        [],
        {
            "out": "runs",
            "log": {"dir": "runs/logs"},
            "xs": ["runs/logs", 1],
            "m": {"dir": "runs/logs"},
            "e": "/data",
        },
    )


def test_every_failing_reference_is_listed_with_its_line():
    problems, _ = resolve(
        {"output_dir": "x", "a": "${output_dirr}", "b": {"c": "${oc.env:NO_SUCH_VARIABLE}"}, "d": "???"},
        {("a",): "my.yaml:2", ("b", "c"): "my.yaml:4"},
    )
    assert problems[0] == "my.yaml:2: 'a' refers to '${output_dirr}', which is not a key; did you mean 'output_dir'?"
    assert problems[1].startswith("my.yaml:4: 'b.c': the variable NO_SUCH_VARIABLE is not set")
    assert problems[2] == "my.yaml: 'd' has no value yet; set d=..."


@pytest.mark.parametrize("values", [{"a": "${b}", "b": "${a}"}, {"a": {"b": "${a}"}}])
def test_a_circle_is_an_error_not_a_crash(values):
    try:
        problems, _ = resolve(values)
    except ConfigError as error:
        problems = [str(error)]
    assert len(problems) >= 1


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("${a}", ["a"]),
        ("x/${ a.b }/${c[0]}", ["a", "c"]),
        ("${a.${b}}", ["a", "b"]),
        ({"k": ["${a}", {"m": "${b}"}]}, ["a", "b"]),
        ("${oc.env:HOME}/${asset:base}", []),
        ("$a {a} a", []),
        (3, []),
    ],
)
def test_the_keys_that_a_value_refers_to(value, keys):
    assert list(interpolation.referred(value)) == keys


def test_an_asset_is_a_path_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_text("")
    monkeypatch.setattr(interpolation, "ASSETS", tmp_path)
    assert resolve({"path": "${asset:tokenizer.model}"}) == ([], {"path": str(tmp_path / "tokenizer.model")})
    problems, _ = resolve({"path": "${asset:tokeniser.model}"})
    assert problems == ["my.yaml: 'path': the package has no asset 'tokeniser.model'; did you mean 'tokenizer.model'?"]


@pytest.mark.parametrize(
    "text", ["${oc.env:MY_TOKEN}", "run of ${oc.env:MY_TOKEN,nobody}", "${oc.env:${name}}", "${oc.env:DB}"]
)
def test_a_secret_of_the_environment_does_not_get_into_a_config(text, monkeypatch):
    """A secret is recognised by its name, set or not, or by its value."""
    monkeypatch.setenv("DB", "postgres://me:pass@host/rows")
    problems, values = resolve({"name": "MY_TOKEN", "notes": text}, {("notes",): "my.yaml:2"})
    name = "DB" if "DB" in text else "MY_TOKEN"
    assert len(problems) == 1
    assert problems[0].startswith(
        f"my.yaml:2: 'notes': the variable {name} holds a secret, which a config would pass on"
    )
    assert "pass@" not in problems[0] and values["name"] == "MY_TOKEN"


def test_other_code_that_reads_the_environment_by_omegaconf_is_left_alone(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abc")
    resolve({"a": "${oc.env:MY_TOKEN}"})
    assert OmegaConf.create({"a": "${oc.env:MY_TOKEN}"}).a == "abc"
