"""Processes that share the weights, against one that has them all: what `sharded_checks` finds in two and in four."""

import json
import shutil
from typing import Any

import pytest
import torch

from tests.models.tiny import make
from tests.recipes.conftest import tiny, tune_in, tune_server  # noqa: F401
from tests.training import sharded_checks
from tests.training.sharded_checks import METHODS, OTHERS, SAVED, base_of
from torchtune_lite.errors import ConfigError
from torchtune_lite.training.sharded import Shards
from torchtune_lite.utils.world import World

FOUND: dict[int, list[dict]] = {}
CONFIG = """
base: {base}
saved: {folder}/saved
out: {folder}/out
parallel: {{timeout: 90}}
"""


@pytest.fixture(scope="module")
def look(tune_in, tiny, tmp_path_factory):  # noqa: F811
    """Gives what each of so many processes found."""
    folder = tmp_path_factory.mktemp("sharded")
    alone = World(torch.device("cpu"))
    base = str(shutil.copytree(tiny.checkpoint, folder / "bases" / "llama"))
    for name in OTHERS:
        make(name).save_pretrained(folder / "bases" / name)
    for method, arguments in SAVED.items():
        sharded_checks.save(base_of(base, method), alone, arguments, None, folder / "saved" / method)
    (folder / "out").mkdir()
    (folder / "checks.yaml").write_text(CONFIG.format(base=base, folder=folder))

    def run(processes: int, *words: str, **how) -> Any:
        if how or processes not in FOUND:
            command = ["run", sharded_checks.__file__, "--config", folder / "checks.yaml", *words]
            result = tune_in(folder, *command, processes=processes, **how)
            if how:
                return result
            FOUND[processes] = json.loads(result.stdout)
        return FOUND[processes]

    return run


@pytest.fixture
def two(look):
    return look(2)


@pytest.fixture
def four(look):
    return look(4, "parallel.data=hsdp", "parallel.replicas=2")


VARIANTS = ["qwen2 full", "checkpointed", "in tiles", "step in the backward pass", "layers kept", "SGD", "fused"]
OWN = ["MasterAdamW", "PagedAdamW", "CPUOffloadAdamW", "StochasticAdamW"]


@pytest.mark.parametrize("case", [*METHODS, *VARIANTS, *OWN])
def test_losses_and_norms_are_those_of_one_process(two, case):
    assert all(found[f"losses/{case}"] < 5e-6 for found in two)


@pytest.mark.parametrize("case", ["LoRA", "QLoRA"])
def test_replicas_have_the_losses_of_one_process(four, case):
    assert all(found[f"losses/{case}"] < 5e-6 for found in four)


def test_an_average_of_the_gradients_would_show(two):
    """Negative control."""
    assert all(found["losses/averaged"] > 0.1 for found in two)


def test_an_output_that_is_given_up_before_the_loss_would_show(look):
    """Negative control."""
    result = look(2, "fails=True", check=False)
    assert result.returncode and "mixed torch.Tensor and DTensor" in result.stderr


def test_an_optimizer_of_whole_tensors_is_refused(two):
    assert all("Adafactor is not served where processes share the weights; use" in each["Adafactor"] for each in two)


def test_each_process_reads_its_rows_and_has_the_bits_of_one(two):
    """With the negative control: of block scales less a mean of their own, weights are others."""
    for found in two:
        assert 0.5 < found["share read"] < 0.65  # q and v are whole, as their rows make half a block of scales
        assert found["NF4 bits"][0] == found["NF4 bits"][1] > 20
        assert found["NF4 bits with a mean of its own"] == [0, 6]
        assert found["adapters"] and 0.5 <= found["bytes here"] < 0.501


@pytest.mark.parametrize("processes", ["two", "four"])
@pytest.mark.parametrize("method", SAVED)
def test_files_are_to_the_byte_those_of_one_process(request, method, processes):
    assert all(found[f"saved/{method}"] for found in request.getfixturevalue(processes))


def test_what_one_process_cannot_write_is_an_error_of_all(two):
    for found in two:
        assert found["full disk"].endswith("failed was not saved: No space left on device")
        assert "1 trained weight is NaN or infinite (layers.0.mlp.w1.lora_b.weight)" in found["not finite"]
        assert found["left"] == []


@pytest.mark.parametrize(
    ("size", "here", "data", "given", "replicas"),
    [
        (4, 4, "auto", None, 1),
        (16, 8, "auto", None, 2),
        (16, 8, "fsdp", None, 1),
        (4, 4, "hsdp", 2, 2),
        (2, 1, "auto", None, 1),
        (4, 4, "hsdp", None, "hsdp with 1 replica of 4 processes is not served"),
        (4, 4, "hsdp", 3, "hsdp with 3 replicas of 4 processes is not served"),
        (4, 4, "hsdp", 4, "hsdp with 4 replicas of 4 processes is not served"),
        (4, 4, "fsdp", 2, "parallel.replicas is for parallel.data: hsdp"),
    ],
)
def test_replicas_are_those_of_nodes_unless_they_are_given(monkeypatch, size, here, data, given, replicas):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    shards = Shards.__new__(Shards)
    shards.size = size
    if isinstance(replicas, str):
        with pytest.raises(ConfigError, match=replicas):
            shards._replicas(data, given)
    else:
        assert shards._replicas(data, given) == replicas
