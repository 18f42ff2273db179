"""The live function of a source, and its merged weights, against PEFT."""

import pytest
import torch

from tests.export.models import make, prompts, save
from torchtune_lite.checkpoint.merged_base import filled
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export import open_source
from torchtune_lite.export.comparison import log_probs

LLAMA = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
PHI = {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama3_1", LLAMA | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}),
        ("llama3_1", LLAMA | {"use_dora": True}),
        ("llama3_1", LLAMA | {"use_rslora": True}),
        ("phi4", PHI),
    ],
)
def test_an_adapter_is_merged_weight_by_weight_to_the_function_that_peft_computes(
    name, config, adapt, plain, tmp_path, monkeypatch
):
    folder, adapted = adapt(save(make(name, monkeypatch), tmp_path / "base"), "adapter", **config)
    source = open_source(folder)
    [ids] = prompts(40)
    with torch.no_grad():
        expected = adapted(ids).logits.log_softmax(-1)
        live, merged = log_probs(source.model, source.base, ids), log_probs(plain(source), source.weights, ids)
    assert (live - expected).abs().max() < 1e-4 and (merged - expected).abs().max() < 1e-4
    assert all(
        param.is_meta
        for name, param in source.model.named_parameters()
        if not {"lora_a", "lora_b", "magnitude"} & set(name.split("."))
    )


def test_what_is_filled_is_empty_again_also_after_an_error(llama):
    source = open_source(llama)
    name = "layers.0.attn.q_proj.weight"
    with pytest.raises(ZeroDivisionError), filled(source.model, {name: source.base[name]}):
        assert torch.equal(source.model.get_parameter(name), source.base[name].read())
        _ = 1 / 0
    assert source.model.get_parameter(name).is_meta


def test_the_base_of_an_adapter_may_be_named(llama, adapt):
    folder, _ = adapt(llama, "adapter")
    elsewhere = llama.rename(llama.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="name the base model's folder with --base"):
        open_source(folder)
    assert open_source(folder, elsewhere).found.base == elsewhere
