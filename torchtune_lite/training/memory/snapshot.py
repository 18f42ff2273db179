"""A copy of what training changes, so that it can be written while training goes on."""

import copy
from dataclasses import replace

from torch import nn

from torchtune_lite.checkpoint import TrainingState
from torchtune_lite.checkpoint.formats.weights import Weight


def snapshot_model(model: nn.Module) -> nn.Module:
    """Return the model as it is now: trained parameters are copied, all others shared, as they never change.

    The copies lie in host memory; of a model that is trained in part they stay on its device, where the few that they
    are, adapters, are merged with the weights that are shared.
    """
    in_part = not all(param.requires_grad for param in model.parameters())
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for param in model.parameters():
        if param.requires_grad:
            device = param.device if in_part else "cpu"
            memo[id(param)] = nn.Parameter(param.detach().to(device, copy=True))
    if not in_part:
        memo |= {id(buffer): buffer.cpu() for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def snapshot_state(state: TrainingState) -> TrainingState:
    """Return the state with the tensors of optimizer and adapters copied to host memory."""
    tensors = {name: Weight.of(each.read().to("cpu", copy=True)) for name, each in state.tensors.items()}
    of_adapters = {name: tensor.to("cpu", copy=True) for name, tensor in state.of_adapters.items()}
    return replace(state, tensors=tensors, of_adapters=of_adapters)
