"""Where the adapters of a folder go; that they compute as PEFT's do is tested in test_adapter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.adapter_method import SavedMethod
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models.builders import projections
from torchtune_lite.modules import DecoderConfig


def test_its_targets_have_our_names_and_must_be_there(hf_base, tmp_path):
    theirs = AutoModelForCausalLM.from_pretrained(hf_base.dir, dtype=torch.float32)
    config = LoraConfig(r=3, target_modules=["v_proj", "down_proj"], layers_to_transform=[1])
    get_peft_model(theirs, config).save_pretrained(tmp_path)
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    sizes = DecoderConfig(**checkpointer.decoder_args)
    layout, names = checkpointer.layout_of(sizes), projections(sizes)
    method = SavedMethod(tmp_path, layout, names)
    assert sorted(method.targets) == ["layers.1.attn.v_proj", "layers.1.mlp.w2"]
    put = method.put("layers.1.mlp.w2", torch.nn.Linear(256, 128))
    assert (put.rank, put.in_dim) == (3, 256)
    with pytest.raises(CheckpointError, match=r"the model has no projection model\.layers\.1\.mlp\.down_proj"):
        SavedMethod(tmp_path, layout, [name for name in names if "w2" not in name])
