import sys

import pytest
import torch

from torchtune_lite.config.schema import components
from torchtune_lite.config.text.document import Document
from torchtune_lite.errors import ConfigError, DataError

OWN = """
from torchtune_lite.errors import DataError

class Box:
    def __init__(self, size: int, *, name: str = "box", inner=None, extras: list[str] | None = None):
        self.size, self.name, self.inner, self.extras = size, name, inner, extras

def open_ended(tokenizer, **kwargs): return tokenizer, kwargs
def fails(with_what: str):
    if with_what == "data": raise DataError("row 3 is empty")
    if with_what == "file": open("no_such_file")
    if with_what == "bug": return {}["x"]
    raise ValueError("two\\nlines")
"""
ADAMW = {"_component_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.9, 0.99]}


@pytest.fixture(autouse=True)
def own(folder, monkeypatch):
    (folder / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("own", None)


def check(value, *given):
    doc = Document("my.yaml", {"key": value}, {("key",): "my.yaml:1", ("key", "lr"): "my.yaml:3"})
    return components.check(value, ("key",), doc, given)


def test_a_component_is_built_from_the_config_and_what_the_recipe_passes():
    optimizer = components.instantiate(ADAMW, [torch.nn.Parameter(torch.ones(2))], weight_decay=0.5)
    assert optimizer.defaults["lr"] == 0.1
    assert optimizer.defaults["weight_decay"] == 0.5


def test_nothing_a_list_and_nested_components():
    box = {"_component_": "own.Box", "size": 1}
    assert components.instantiate(None) is None
    assert [each.size for each in components.instantiate([box, {**box, "size": 2}], name="x")] == [1, 2]
    outer = components.instantiate({**box, "inner": box, "extras": [box, {"a": box}]})
    assert outer.inner.size == outer.extras[0].size == outer.extras[1]["a"].size == 1


def test_a_mapping_of_names_to_components_where_it_is_declared():
    box = {"_component_": "own.Box", "size": 1}
    built = components.instantiate({"a": box, "b": {**box, "size": 2}}, name="x")
    assert {name: (each.size, each.name) for name, each in built.items()} == {"a": (1, "x"), "b": (2, "x")}
    doc = Document("my.yaml", {}, {("key",): "my.yaml:1", ("key", "b"): "my.yaml:3"})
    named = {"a": box, "b": {**box, "sise": 2}}
    [line] = components.check(named, ("key",), doc, (), named=True)
    assert line == "my.yaml:3: 'key.b' (own.Box) has no argument 'sise'; did you mean 'size'?"
    for value in (named, {"a": 1, "b": box}, {}):
        given = {} if value is named else {"named": True}
        [line] = components.check(value, ("key",), doc, (), **given)
        assert line.startswith("my.yaml:1: 'key' needs a _component_, got mapping {")


@pytest.mark.parametrize(
    "node",
    [
        [{"_component_": "own.Box", "size": 1}, {"_component_": "os.system"}],
        {"_component_": "own.Box", "size": {"_component_": "own.Box", "size": {"_component_": "os.system"}}},
        {"_component_": "own.Box", "size": 1, "inner": {"deep": [[{"_component_": "own.Bax"}]]}},
        {"_component_": "os.system", "command": {"_component_": "own.Box", "size": 1}},
    ],
)
def test_nothing_is_built_where_one_of_several_components_is_refused(node, monkeypatch):
    import own

    monkeypatch.setattr(own.Box, "__init__", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ConfigError, match="not an allowed component|cannot find 'Bax'"):
        components.instantiate(node)


def test_defaults_fill_what_is_left_out_and_known():
    box = {"_component_": "own.Box", "name": "mine"}
    built = components.instantiate(box, defaults={"size": 7, "name": "default", "unknown": 1})
    assert (built.size, built.name) == (7, "mine")


def test_what_a_component_rejects_names_its_key():
    node = components.Component({"_component_": "own.fails", "with_what": "x"}, "my.yaml:4: 'dataset'")
    with pytest.raises(ConfigError, match=r"^my.yaml:4: 'dataset' \(own.fails\): two lines$"):
        components.instantiate(node)
    with pytest.raises(ConfigError, match="no_such_file"):
        components.instantiate({**node, "with_what": "file"})
    with pytest.raises(ConfigError, match="missing a required argument: 'size'|missing 1 required"):
        components.instantiate({"_component_": "own.Box"})
    with pytest.raises(ConfigError, match="expected a mapping with a _component_, got text 'own.Box'"):
        components.instantiate("own.Box")


def test_a_users_error_and_a_bug_pass_as_they_are():
    with pytest.raises(DataError, match="^row 3 is empty$"):
        components.instantiate({"_component_": "own.fails", "with_what": "data"})
    with pytest.raises(KeyError):
        components.instantiate({"_component_": "own.fails", "with_what": "bug"})


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (None, ()),
        (ADAMW, ("params",)),
        ([{"_component_": "own.Box", "size": 1}] * 2, ()),
        ({"_component_": "own.open_ended", "anything": 1}, ("tokenizer",)),
        ({"_component_": "own.Box", "size": {"_component_": "own.Box", "size": 1}}, ()),
    ],
)
def test_nothing_is_wrong_with_what_can_be_built(value, given):
    assert check(value, *given) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "2e-5,"}, "my.yaml:3: 'key' (torch.optim.AdamW) expects float for 'lr', got text '2e-5,'"),
        ({"fusde": 1}, "my.yaml:1: 'key' (torch.optim.AdamW) has no argument 'fusde'; did you mean 'fused'?"),
        ({"params": 1}, "my.yaml:1: 'key' (torch.optim.AdamW) gets 'params' from the recipe; remove it here"),
        ({"betas": {"_component_": "own.Bax"}}, "'key.betas': cannot find 'Bax' in own; did you mean 'Box'?"),
    ],
)
def test_each_wrong_argument_is_named_with_its_line(changes, message):
    [problem] = check(ADAMW | changes, "params")
    assert message in problem


def test_a_text_that_names_an_object_is_checked_as_a_component_is():
    tokenizer = {"_component_": "torchtune_lite.data.SentencePieceTokenizer", "path": "x"}
    template = "torchtune_lite.data.Llama2ChatTemplate"
    assert check(tokenizer | {"prompt_template": template}) == []
    assert check(tokenizer | {"prompt_template": {"user": ["a", "b"]}}) == []
    assert check(tokenizer | {"prompt_template": "chat_template"}) == []  # a word that the annotation allows
    [problem] = check(tokenizer | {"prompt_template": "torchtune_lite.data.os.system"})
    assert "cannot take 'prompt_template': 'torchtune_lite.data.os.system' is not an allowed component" in problem
    [problem] = check(tokenizer | {"prompt_template": "os.system"})
    assert "cannot take 'prompt_template': 'os.system' is not an allowed component" in problem


def test_an_argument_far_from_any_is_answered_with_all():
    [problem] = check(ADAMW | {"learning_rate": 1}, "params")
    assert "has no argument 'learning_rate' (it has: lr, betas, eps," in problem


def test_missing_arguments_are_exact():
    [problem] = check({"_component_": "own.Box"})
    assert problem == "my.yaml:1: 'key' (own.Box) needs size"
    assert check({"_component_": "own.Box"}, "size") == []
    [problem] = check({"_component_": "own.Box", "size": 1}, "tokenizer")
    assert "has no argument 'tokenizer', which the recipe passes" in problem


def test_components_in_lists_and_mappings_are_checked():
    value = {"_component_": "own.Box", "size": 1, "inner": {"deep": [{"_component_": "own.Box", "sise": 1}]}}
    problems = check(value)
    assert [problem.partition(" (")[0] for problem in problems] == ["my.yaml:1: 'key.inner.deep.0'"] * 2


@pytest.mark.parametrize("value", [3, {"size": 1}, [{"size": 1}]])
def test_a_key_for_a_component_needs_one(value):
    [problem] = check(value)
    assert "needs a _component_, got" in problem
