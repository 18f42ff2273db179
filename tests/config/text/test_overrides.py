import pytest

from torchtune_lite.config.text import overrides
from torchtune_lite.config.text.document import Document


@pytest.fixture
def doc():
    values = {
        "seed": 1,
        "none": None,
        "model": {"_component_": "a.b", "rank": 8},
        "dataset": [{"_component_": "c.d", "source": "x"}, {"_component_": "c.d"}],
    }
    return Document("my.yaml", values, {("model",): "my.yaml:3", ("model", "rank"): "my.yaml:5"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-5", 1e-5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", ""),
        ("a=b=c", "a=b=c"),
        ("two words", "two words"),
        ("Question: what?", "Question: what?"),
        ("- a dash", "- a dash"),
        ("# a hash", "# a hash"),
        ("C # language", "C # language"),
        ("*star", "*star"),
        ("臺北市", "臺北市"),
        ("it's", "it's"),
        ("'3'", "3"),
        ('"[INST] hi"', "[INST] hi"),
        ("[1,[a,2.5],null]", [1, ["a", 2.5], None]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ("${output_dir}/logs", "${output_dir}/logs"),
        ("00004", "00004"),
        ("1:30", "1:30"),
    ],
)
def test_a_value_is_read_as_yaml_and_a_text_stays_as_it_stands(text, value):
    assert overrides.value(text) == value


def test_keys_are_set_at_any_depth_and_remember_their_word(doc):
    words = ["seed=2", "model.rank=16", "model.alpha=32", "dataset.1.source=y", "dataset[0].source=z", "none.a.b=1"]
    assert overrides.apply(doc, words) == []
    assert doc.values == {
        "seed": 2,
        "none": {"a": {"b": 1}},
        "model": {"_component_": "a.b", "rank": 16, "alpha": 32},
        "dataset": [{"_component_": "c.d", "source": "z"}, {"_component_": "c.d", "source": "y"}],
    }
    assert doc.place(("model", "rank")) == "override 'model.rank=16'"
    assert doc.place(("none", "a")) == "override 'none.a.b=1'"
    assert doc.place(("model",)) == "my.yaml:3"


def test_a_component_is_replaced_by_a_dotted_path_and_keeps_its_arguments(doc):
    assert overrides.apply(doc, ["model=e.f"]) == []
    assert doc.values["model"] == {"_component_": "e.f", "rank": 8}


def test_an_argument_may_be_given_to_a_component_that_has_none_yet(doc):
    assert overrides.apply(doc, ["loss=e.f", "loss.x.y=1"]) == []
    assert doc.values["loss"] == {"_component_": "e.f", "x": {"y": 1}}


def test_a_mapping_replaces_the_whole_component(doc):
    assert overrides.apply(doc, ["model={_component_: e.f}"]) == []
    assert doc.values["model"] == {"_component_": "e.f"}
    assert doc.place(("model", "rank")) == "override 'model={_component_: e.f}'"


def test_a_key_is_removed(doc):
    assert overrides.apply(doc, ["~model.rank", "~dataset.0", "~seed"]) == []
    assert doc.values == {"none": None, "model": {"_component_": "a.b"}, "dataset": [{"_component_": "c.d"}]}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr", "expected key=value or ~key, without dashes"),
        ("--lr=3", "expected key=value or ~key, without dashes"),
        ("=3", "expected a key such as model.lora_rank"),
        ("a..b=3", "expected a key such as model.lora_rank"),
        ("seed=None", "YAML writes null, not None"),
        ("seed.x=1", "'seed' is 1, so it has no 'x'"),
        ("dataset.2.source=x", "'dataset' is a list of 2; choose an index below that, not '2'"),
        ("dataset.first=x", "'dataset' is a list of 2; choose an index below that, not 'first'"),
        ("xs=[1,2", "cannot read [1,2 as YAML; quote a text twice: key='\"[1,2\"'"),
        ("~sede", "there is no key 'sede' to remove; did you mean 'seed'?"),
        ("~rank", "there is no key 'rank' to remove; did you mean 'model.rank'?"),
        ("~source", "there is no key 'source' to remove; did you mean 'dataset.0.source'?"),
        ("~model.rnk", "there is no key 'model.rnk' to remove; did you mean 'rank'?"),
    ],
)
def test_a_word_that_cannot_be_applied_is_named(word, message, doc):
    assert overrides.apply(doc, [word]) == [f"override '{word}': {message}"]


@pytest.mark.parametrize("bracket", ["[", "{", "[{", "{a: ["])
def test_a_value_that_is_nested_without_bound_is_an_error(bracket, doc):
    [problem] = overrides.apply(doc, [f"model={bracket * 30_000}"])
    assert problem.endswith("lists and mappings are nested too deeply to be read")
    assert overrides.value("[" * 50 + "]" * 50) is not None
