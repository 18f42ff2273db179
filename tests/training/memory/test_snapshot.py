"""A snapshot does not change while training goes on, and does not copy frozen weights."""

import torch
from torch import nn

from torchtune_lite.checkpoint import TrainingState
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.training.memory.snapshot import snapshot_model, snapshot_state


def test_trained_parameters_are_copied_and_all_else_is_shared():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    taken = snapshot_model(model)
    assert taken[0].weight is model[0].weight and taken[1].running_mean is model[1].running_mean
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param += 1
    for name, value in taken.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(model[0].bias, taken[0].bias)
    assert all(
        param.requires_grad == taken.get_parameter(name).requires_grad for name, param in model.named_parameters()
    )


def test_a_tied_parameter_is_one_in_the_snapshot():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    taken = snapshot_model(model)
    assert taken[0].weight is taken[1].weight is not model[0].weight


def test_the_optimizers_tensors_are_copied():
    state = TrainingState({"moment": Weight.of(torch.zeros(2))}, {}, {"progress": {}}, [{"python": []}])
    taken = snapshot_state(state)
    state.tensors["moment"].read().add_(1)
    assert taken.tensors["moment"].read().tolist() == [0, 0] and taken.trainer == state.trainer
