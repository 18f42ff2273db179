from dataclasses import dataclass
from typing import Any

import pytest

from torchtune_lite import config
from torchtune_lite.config.schema.places import Places


@dataclass
class Settings:
    output_dir: str
    model: Any = config.component()
    optimizer: Any = config.component("params")
    dataset: Any = config.component("tokenizer", default=None)
    loss: Any = config.component(default=None)
    prompt: Any = config.key(None)


MODEL = {"_component_": "torchtune_lite.models.llama2.lora_llama2_7b", "lora_attn_modules": ["q_proj"]}
ROWS = {"_component_": "torchtune_lite.datasets.instruct_dataset", "source": "x", "data_files": {"train": "y"}}
VALUES = {
    "model": MODEL,
    "optimizer": "torch.optim.AdamW",
    "dataset": [ROWS, {**ROWS, "split": "train"}],
    "prompt": {"user": "a", "inner": {"deep": 1}},
    "lora_rank": 16,
    "loss": "torchtune_lite.modules.loss.LinearCrossEntropyLoss",
}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lora_rank", "'model.lora_rank'"),
        ("lr", "'optimizer.lr'"),
        ("output_dir", "'output_dir' at the top level"),
        ("source", "'dataset.0.source' or 'dataset.1.source'"),
        ("split", "'dataset.1.split' or 'dataset.0.split'"),  # the one that is set comes first
        ("chunk_size", "'loss.chunk_size'"),
        ("deep", "'prompt.inner.deep'"),
    ],
)
def test_a_key_that_is_one_elsewhere_is_named_with_its_path(key, meant):
    assert Places(Settings, VALUES).exactly(key) == f"; did you mean {meant}?"


@pytest.mark.parametrize("key", ["params", "tokenizer", "_component_", "train", "nonsense", "lora_rnk"])
def test_what_is_no_key_of_the_config_is_not_named(key):
    assert Places(Settings, VALUES).exactly(key) == ""


def test_a_slip_in_a_key_of_elsewhere_is_found_nearly():
    places = Places(Settings, VALUES)
    assert places.nearly("lora_rnk") == "; did you mean 'model.lora_rank'?"
    assert places.nearly("zzz") == ""


@pytest.mark.parametrize("model", [{"_component_": "no.such.thing"}, {"lora_rank": 1}, 3, None, {"_component_": 3}])
def test_a_component_that_cannot_be_found_has_no_keys(model):
    assert Places(Settings, {**VALUES, "model": model}).exactly("lr") == "; did you mean 'optimizer.lr'?"
