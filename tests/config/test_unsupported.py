import pytest

from torchtune_lite import config, models
from torchtune_lite.config import unsupported
from torchtune_lite.config.text.document import Document
from torchtune_lite.errors import ConfigError
from torchtune_lite.models import find_family


def drop(values, served=()):
    doc = Document("their.yaml", values, {("compile",): "their.yaml:9"})
    return unsupported.drop(doc, served), doc.values


def test_keys_that_are_off_go_with_one_warning(capsys):
    values = {
        "seed": 1,
        "compile": False,
        "profiler": {"_component_": "torchtune.training.setup_torch_profiler", "enabled": False},
        "low_cpu_ram": True,
        "quantizer": None,
    }
    assert drop(values) == ([], {"seed": 1})
    assert capsys.readouterr().err == (
        "tune: warning: their.yaml: without effect here: compile, profiler, low_cpu_ram, quantizer\n"
    )


def test_a_key_that_is_on_is_an_error_that_says_what_to_do(capsys):
    problems, rest = drop({"compile": True})
    assert problems == [
        "their.yaml:9: 'compile' is not served here; call torch.compile in a recipe of your own ('tune cp')"
    ]
    assert rest == {}
    assert capsys.readouterr().err == ""


def test_beside_an_error_there_is_no_warning(capsys):
    problems, rest = drop({"compile": True, "profiler": None})
    assert len(problems) == 1 and rest == {} and capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [4, None])
def test_a_key_that_has_another_name_now_is_an_error_whatever_its_value(value, capsys):
    problems, rest = drop({"verify_rows": value})
    assert problems == ["their.yaml: 'verify_rows' was renamed; use verify_saves: first_and_last, all or null"]
    assert rest == {} and capsys.readouterr().err == ""


def test_a_recipe_that_serves_a_key_keeps_it():
    assert drop({"compile": True}, served=["compile"]) == ([], {"compile": True})


@pytest.mark.parametrize("name", [*unsupported.FAMILIES, "LLAMA3_VISION", "QWEN2", "LLAMA2", "llama3_1", "no_such"])
def test_a_family_of_torchtune_that_is_not_here_is_named(name):
    why = unsupported.FAMILIES.get(name.lower())
    assert unsupported.unserved_family(name) == (f"{name} is a family that is not served: {why}" if why else "")
    assert bool(why) == (find_family(name) is None and not hasattr(models, name)) or name == "no_such"


@pytest.mark.parametrize("kind", ["lora_{}_8b", "{}_tokenizer", "{}"])
@pytest.mark.parametrize("prefix", ["torchtune", "torchtune_lite"])
def test_whatever_a_config_names_of_it(prefix, kind):
    path = f"{prefix}.models.llama3_2_vision.{kind.format('llama3_2_vision')}"
    with pytest.raises(ConfigError, match=f"^'{path}': llama3_2_vision is a family that is not served: it sees "):
        config.find(path)


@pytest.mark.parametrize("key", unsupported.UNSUPPORTED)
def test_every_key_has_a_value_that_is_off_or_an_advice(key):
    also_off, instead = unsupported.UNSUPPORTED[key]
    assert instead or unsupported.ANY in also_off


def test_keys_of_parallel_that_are_elsewhere_say_what_to_do():
    values = {"parallel": {"data": "fsdp", "tensor": 2, "timeout": 5}}
    problems, rest = drop(values, served=["parallel"])
    assert [line.partition("; ")[0] for line in problems] == [
        "their.yaml: 'parallel.tensor' is not served here",
    ]
    assert rest == {"parallel": {"data": "fsdp", "timeout": 5}}
    assert drop({"parallel": {"data": "ddp"}}, served=["parallel"]) == ([], {"parallel": {"data": "ddp"}})
