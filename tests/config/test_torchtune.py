from dataclasses import dataclass
from typing import Any

import pytest
import torch

from torchtune_lite import config, training
from torchtune_lite.config import torchtune
from torchtune_lite.config.schema import settings
from torchtune_lite.config.text.document import Document
from torchtune_lite.modules.loss import LinearCrossEntropyLoss


@dataclass
class Settings:
    loss: training.Loss = config.component(default=torchtune.LOSS)


@dataclass
class Theirs:
    loss: Any = config.component(default="torch.nn.CrossEntropyLoss")


def translate(values, cls=Settings):
    document = Document("their.yaml", values, {("loss",): "their.yaml:3"})
    return torchtune.translate(document, settings.losses(cls)), document.values


@pytest.mark.parametrize("loss", torchtune.LOSSES)
def test_each_loss_is_ours_with_the_values_that_mean_the_same(loss, capsys):
    for given in (loss, {"_component_": loss}):
        assert translate({"loss": given}) == ([], {"loss": {"_component_": torchtune.LOSS}})
    assert capsys.readouterr().err == ""
    same = {name: 8 if value is torchtune.ANY else value for name, value in torchtune.LOSSES[loss].items()}
    assert translate({"loss": {"_component_": loss, **same}}) == ([], {"loss": {"_component_": torchtune.LOSS}})
    without = [f"loss.{name}" for name, value in torchtune.LOSSES[loss].items() if value is torchtune.ANY]
    said = f"tune: warning: their.yaml: without effect here: {', '.join(without)}\n" if without else ""
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("loss", "name"),
    [(loss, name) for loss, same in torchtune.LOSSES.items() for name in same if same[name] != torchtune.ANY],
)
def test_any_other_value_is_refused_by_name(loss, name):
    [problem], _ = translate({"loss": {"_component_": loss, name: "else"}})
    assert problem.startswith(f"their.yaml:3: 'loss.{name}' of {loss} is not served; leave it out, or write a loss")


def test_the_arguments_of_torchs_loss_are_all_known():
    import inspect

    assert set(torchtune.LOSSES["torch.nn.CrossEntropyLoss"]) == set(
        inspect.signature(torch.nn.CrossEntropyLoss).parameters
    )


def test_ours_and_a_loss_that_a_recipe_calls_otherwise_stay():
    ours = {"_component_": torchtune.LOSS, "chunk_size": 3}
    for loss in (ours, {"_component_": ["x"]}, {"chunk_size": 3}, None, 3):
        assert translate({"loss": loss}) == ([], {"loss": loss})
    theirs = {"_component_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1}
    assert translate({"loss": theirs}, Theirs) == ([], {"loss": theirs})


def test_the_sum_that_the_recipe_divides_is_what_torchs_mean_is_there():
    torch.manual_seed(0)
    output, hidden, labels = torch.nn.Linear(8, 11), torch.randn(2, 5, 8), torch.randint(0, 11, (2, 5))
    labels[0, :3] = -100
    mean = torch.nn.CrossEntropyLoss()(output(hidden).flatten(0, 1), labels.flatten())
    ours = LinearCrossEntropyLoss()(output, hidden, labels) / (labels != -100).sum()
    torch.testing.assert_close(ours, mean)


@pytest.mark.parametrize(("model_type", "right"), [("FLUX", False), ("QWEN2", True), ("LLAMA2", True), (None, True)])
def test_a_checkpointer_of_a_family_that_is_not_here_is_named(model_type, right):
    problems, _ = translate({"checkpointer": {"_component_": "x.y", "model_type": model_type}})
    why = "is a family that is not served: it sees or makes images"
    said = f"their.yaml: 'checkpointer.model_type': {model_type} {why}"
    assert problems == ([] if right else [said])


QLORA = "torchtune.models.llama2.qlora_llama2_7b"
LORA = "torchtune.models.llama2.lora_llama2_7b"


@pytest.mark.parametrize(
    ("node", "frozen"),
    [
        ({"_component_": QLORA}, True),
        ({"_component_": QLORA, "quantize_base": False}, False),
        ({"_component_": QLORA, "quantize_frozen": False}, False),
        ({"_component_": LORA}, False),
        ({"_component_": LORA, "quantize_base": True}, True),
        ({"_component_": QLORA.replace("torchtune", "torchtune_lite")}, None),
        ({"_component_": "torchtune.models.llama2.llama2_7b"}, None),
        ({"_component_": "torchtune.models.llama2.no_such"}, None),
        ({"_component_": 3}, None),
    ],
)
def test_quantize_base_means_all_projections_of_the_layers_as_there(node, frozen):
    for values in ({"model": dict(node)}, {"models": [{"inner": dict(node)}]}):
        problems, values = translate(values)
        [made] = list(torchtune.components_in(values))
        assert problems == [] and made.get("quantize_frozen") is frozen


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, None),
        ({"data_parallel_shard_dim": -1, "data_parallel_replicate_dim": 1}, {"data": "fsdp"}),
        ({"data_parallel_replicate_dim": 2}, {"data": "hsdp", "replicas": 2}),
        ({"data_parallel_replicate_dim": 4, "data_parallel_shard_dim": 1}, {"data": "ddp"}),
        ({"fsdp_reshard_after_forward": False}, {"reshard_after_forward": False}),
        ({"data_parallel_shard_dim": 8, "parallel": {"data": "ddp"}}, {"data": "ddp"}),
    ],
)
def test_keys_of_how_a_model_is_shared_are_those_of_parallel(theirs, ours):
    document = Document("their.yaml", dict(theirs), {(key,): f"their.yaml:{i}" for i, key in enumerate(theirs)})
    torchtune.share_out(document, served=["parallel"])
    assert document.values == ({} if ours is None else {"parallel": ours})
    if ours and "parallel" not in theirs:
        assert document.place(("parallel", "data")).startswith("their.yaml:")
    document = Document("their.yaml", dict(theirs), {})
    torchtune.share_out(document, served=["model"])
    assert document.values == theirs
