import json
import sys

import pytest
import torch

from torchtune_lite.checkpoint.formats.tensor_classes import flatten_tensor, unflatten_tensor
from torchtune_lite.errors import CheckpointError


def test_a_plain_tensor_is_its_own_only_part():
    tensor = torch.ones(2)
    parts, about = flatten_tensor(tensor)
    assert parts[""] is tensor and about is None


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_a_state_of_torchao_is_put_together_from_plain_values(name):
    import torchao.optim

    param = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    state = getattr(torchao.optim, name)([param])._new_buffer(param, signed=True)
    state.copy_(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    parts, about = flatten_tensor(state)
    assert all(type(part) is torch.Tensor for part in parts.values())
    again = unflatten_tensor(parts, json.loads(json.dumps(about)))
    assert type(again) is type(state) and again.shape == state.shape and again.dtype == state.dtype
    assert torch.equal(again.dequantize(), state.dequantize())


def test_another_class_is_neither_saved_nor_made():
    from torch.testing._internal.two_tensor import TwoTensor

    with pytest.raises(CheckpointError, match="its state is a torch.testing.*TwoTensor, which is not saved"):
        flatten_tensor(TwoTensor(torch.ones(2), torch.ones(2)))


@pytest.mark.parametrize(
    "path",
    [
        *("os.system", "torchao.os.system", "torchao.optim.AdamW8bit", "torchao.optim.adam.torch.load", "torchao", 3),
        *("torchao.utils.TorchAOBaseTensor.from_hp", "torchao.no_such_module.Thing", "torch.nn.Parameter"),
    ],
)
def test_a_checkpoint_names_classes_of_tensors_that_are_loaded_and_nothing_else(path):
    import torchao.optim  # noqa: F401

    before = set(sys.modules)
    with pytest.raises(CheckpointError, match=f"a state of class {path}; allowed are those of torchao"):
        unflatten_tensor({}, [path])
    assert set(sys.modules) == before


def test_a_checkpoint_names_dtypes_and_nothing_else_of_torch():
    import torchao.optim

    param = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    parts, about = flatten_tensor(torchao.optim.AdamW8bit([param])._new_buffer(param, signed=True))
    assert "torch.bfloat16" in about
    changed = ["torch.load" if each == "torch.bfloat16" else each for each in about]
    with pytest.raises(CheckpointError, match="has 'torch.load' for a dtype"):
        unflatten_tensor(parts, changed)
