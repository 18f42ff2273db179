from dataclasses import dataclass
from typing import Any

import pytest

from torchtune_lite.config.schema import components, settings
from torchtune_lite.config.schema.settings import component, key, mapping
from torchtune_lite.config.text import document
from torchtune_lite.errors import ConfigError


@dataclass
class Inner:
    data: str = key("auto", choices=("auto", "ddp"))
    timeout: float = key(600.0, above=0)


@dataclass
class Settings:
    output_dir: str
    epochs: int = key(1, minimum=1)
    optimizer: Any = component("params")
    clip: float | None = key(None, above=0)
    dtype: str = key("bf16", choices=("fp32", "bf16"))
    adapter_dtype: str | None = key(None, choices=("fp32", "bf16"))
    loss: Any = component(default={"_component_": "torch.nn.CrossEntropyLoss"})
    dataset: Any = component(default=None)
    dataset_val: Any = component(default=None, named=True)
    prompt: Any = key(None)
    parallel: Inner = mapping(Inner)


OPTIMIZER = "optimizer: {_component_: torch.optim.AdamW, lr: 1e-3}\n"


def build(folder, text):
    (folder / "my.yaml").write_text(text)
    return settings.build(Settings, document.read(folder / "my.yaml", "my.yaml"))


def test_values_and_defaults(folder):
    made, problems = build(folder, f"output_dir: x\nepochs: 2\n{OPTIMIZER}x_mine: 1\nadapter_dtype: null\n")
    assert problems == []
    assert (made.output_dir, made.epochs, made.clip, made.dtype, made.dataset) == ("x", 2, None, "bf16", None)
    assert made.loss == {"_component_": "torch.nn.CrossEntropyLoss"}
    assert made.optimizer == {"_component_": "torch.optim.AdamW", "lr": 1e-3}
    assert made.optimizer.where == "my.yaml:3: 'optimizer'"


def test_a_key_may_hold_components_by_name(folder):
    sets = "{a: {_component_: torch.nn.L1Loss}, b: {_component_: torch.nn.MSELoss, redcution: sum}}"
    made, problems = build(folder, f"output_dir: x\n{OPTIMIZER}dataset_val: {sets}\n".replace("redcution", "reduction"))
    assert problems == [] and made.dataset_val["b"] == {"_component_": "torch.nn.MSELoss", "reduction": "sum"}
    assert made.dataset_val["b"].where == "my.yaml:3: 'dataset_val.b'"
    _, problems = build(folder, f"output_dir: x\n{OPTIMIZER}dataset_val: {sets}\ndataset: {sets}\n")
    assert (
        len(problems) == 2 and "did you mean 'reduction'?" in problems[1] and "'dataset' needs a _comp" in problems[0]
    )


def test_a_dotted_path_alone_is_a_component_without_arguments(folder):
    made, problems = build(folder, "output_dir: x\noptimizer: torch.optim.SGD\n")
    assert problems == []
    assert made.optimizer == {"_component_": "torch.optim.SGD"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ouput_dir: x\n", "my.yaml:3: unknown key 'ouput_dir'; did you mean 'output_dir'?"),
        ("epochs: 1.5\n", "my.yaml:3: 'epochs': expected int, got float 1.5"),
        ("epochs: true\n", "my.yaml:3: 'epochs': expected int, got true"),
        ("epochs: null\n", "my.yaml:3: 'epochs': expected int, got null"),
        ("epochs: 0\n", "my.yaml:3: 'epochs': expected at least 1, got 0"),
        ("clip: 0\n", "my.yaml:3: 'clip': expected more than 0, got 0"),
        ("clip: .nan\n", "my.yaml:3: 'clip': expected more than 0, got nan"),
        ("clip: None\n", "my.yaml:3: 'clip': expected float or null, got text 'None'"),
        ("dtype: fp16\n", "my.yaml:3: 'dtype': expected fp32 or bf16, got text 'fp16'"),
        ("dtype: bfloat16\n", "my.yaml:3: 'dtype': expected fp32 or bf16, got text 'bfloat16'; did you mean 'bf16'?"),
        ("dtype: torch.float32\n", "my.yaml:3: 'dtype': expected fp32 or bf16, got text 'torch.float32'; did you mean"),
        ("lr: 1\n", "my.yaml:3: unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("weight_decy: 1\n", "my.yaml:3: unknown key 'weight_decy'; did you mean 'optimizer.weight_decay'?"),
        ("dtype: null\n", "my.yaml:3: 'dtype': expected str, got null"),
        ("adapter_dtype: fp16\n", "my.yaml:3: 'adapter_dtype': expected fp32 or bf16, got text 'fp16'"),
        ("loss: null\n", "my.yaml:3: 'loss' needs a _component_, not null"),
        ("dataset: {source: x}\n", "my.yaml:3: 'dataset' needs a _component_, got mapping {'source': 'x'}"),
        ("prompt: {_component_: os.system}\n", "my.yaml:3: 'prompt': 'os.system' is not an allowed component"),
    ],
)
def test_each_wrong_value_is_named_with_its_line(text, message, folder):
    made, [problem] = build(folder, f"output_dir: x\n{OPTIMIZER}{text}")
    assert made is None
    assert problem.startswith(message)


def test_an_argument_of_another_component_or_of_the_recipe_is_named_with_its_place(folder):
    text = "output_dir: x\noptimizer: {_component_: torch.optim.AdamW, epochs: 1, label_smoothing: 0.1}\n"
    problems = build(folder, text)[1]
    assert [problem.partition(" has ")[2] for problem in problems] == [
        "no argument 'epochs'; did you mean 'epochs' at the top level?",
        "no argument 'label_smoothing'; did you mean 'loss.label_smoothing'?",
    ]


def test_a_number_for_a_text_is_told_how_to_be_one(folder):
    _, [problem] = build(folder, f"output_dir: 3\n{OPTIMIZER}")
    assert (
        problem == "my.yaml:1: 'output_dir': expected str, got int 3; a text is quoted: '3', on a command line '\"3\"'"
    )


def test_a_key_of_the_users_own_needs_a_use(folder):
    (folder / "my.yaml").write_text(f"output_dir: x\n{OPTIMIZER}mine: 3\nother: 4\n")
    doc = document.read(folder / "my.yaml", "my.yaml")
    doc.own = {"mine"}
    made, [problem] = settings.build(Settings, doc)
    assert made is None and problem.startswith("my.yaml:4: unknown key 'other'")


class Contract:
    def step(self): ...


@dataclass
class WithContract:
    optimizer: Contract = component("params")
    more: Contract | None = component("params", default=None)


def test_the_annotation_of_a_component_is_its_contract(folder):
    (folder / "my.yaml").write_text("optimizer: torch.optim.LBFGS\nmore: [torch.optim.AdamW, torch.optim.LBFGS]\n")
    document_ = document.read(folder / "my.yaml", "my.yaml")
    document_.values["more"] = [{"_component_": each} for each in document_.values["more"]]
    misfit = "(torch.optim.LBFGS) has step(closure), and the recipe calls step()"
    assert settings.build(WithContract, document_)[1] == [
        f"my.yaml:1: 'optimizer' {misfit}",
        f"my.yaml:2: 'more.1' {misfit}",
    ]


def test_what_a_builder_gives_is_held_to_the_contract_when_it_is_built(folder):
    (folder / "own_maker.py").write_text("def make(params): return params\n")
    (folder / "my.yaml").write_text("optimizer: own_maker.make\n")
    made, _ = settings.build(WithContract, document.read(folder / "my.yaml", "my.yaml"))
    with pytest.raises(
        ConfigError, match=r"^my.yaml:1: 'optimizer' \(own_maker.make\) has no step\(\), which the recipe"
    ):
        components.instantiate(made.optimizer, [])


def test_an_empty_text_is_not_a_value_of_a_required_key(folder):
    made, problems = build(folder, f"{OPTIMIZER}output_dir: ''\n")
    assert made is None
    assert problems == ["my.yaml:2: 'output_dir': expected a text that is not empty"]


def test_missing_keys_are_all_named(folder):
    assert build(folder, "epochs: 1\n")[1] == [
        "my.yaml: the key 'output_dir' is missing",
        "my.yaml: the key 'optimizer' is missing",
    ]


def test_a_default_is_not_shared(folder):
    first, _ = build(folder, f"output_dir: x\n{OPTIMIZER}")
    first.loss["reduction"] = "sum"
    second, _ = build(folder, f"output_dir: x\n{OPTIMIZER}")
    assert second.loss == {"_component_": "torch.nn.CrossEntropyLoss"}


def test_the_config_in_effect_is_saved_and_builds_the_same_settings(folder):
    made, _ = build(folder, f"output_dir: x\n{OPTIMIZER}prompt: {{user: 'a: b', lines: [1, [2]]}}\n")
    path = settings.save(made, folder / "new/run")
    assert path == folder / "new/run/config.yaml"
    assert path.read_text().startswith("recipe: test_settings\n")
    doc = document.read(path)
    doc.values.pop("recipe")
    again, problems = settings.build(Settings, doc)
    assert problems == []
    assert settings.to_dict(again) == settings.to_dict(made) == doc.values
    assert type(settings.to_dict(made)["optimizer"]) is dict


def test_a_key_may_hold_keys_of_its_own(folder):
    made, problems = build(folder, f"output_dir: x\n{OPTIMIZER}parallel: {{timeout: 5}}\n")
    assert problems == [] and made.parallel == Inner(timeout=5)
    assert settings.to_dict(made)["parallel"] == {"data": "auto", "timeout": 5}
    assert build(folder, f"output_dir: x\n{OPTIMIZER}")[0].parallel == Inner()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("parallel: 2", "my.yaml:3: 'parallel': expected a mapping with data, timeout, got int 2"),
        ("parallel: {data: zero}", "my.yaml:3: 'parallel.data': expected auto or ddp, got text 'zero'"),
        ("parallel:\n  timeout: 0", "my.yaml:4: 'parallel.timeout': expected more than 0, got 0"),
        ("parallel: {timout: 1}", "my.yaml:3: unknown key 'parallel.timout'; did you mean 'timeout'?"),
        ("parallel: {x: 1}", "my.yaml:3: unknown key 'parallel.x'; 'parallel' has data, timeout"),
    ],
)
def test_a_key_within_a_key_is_checked(folder, text, problem):
    made, problems = build(folder, f"output_dir: x\n{OPTIMIZER}{text}\n")
    assert made is None and problems == [problem]
