"""Putting an optimizer and its schedule back to what `training_state` saved of them."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from torchtune_lite.checkpoint.formats.tensor_classes import unflatten_tensor
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.state.run_state import options_of
from torchtune_lite.utils.sharding import local, rows, with_rows


def restore_options(optimizer: Optimizer, lr_scheduler: LRScheduler | None, trainer: dict[str, Any]) -> None:
    """Set the options of the parameter groups and the schedule: of a schedule that is a function of the step, its own.

    With any other schedule, or none, they are the saved ones.
    """
    state = trainer["lr_scheduler"]["state"]
    if isinstance(lr_scheduler, LambdaLR):
        lr_scheduler.load_state_dict(state | {"base_lrs": lr_scheduler.base_lrs})
        step, factors = lr_scheduler.last_epoch, lr_scheduler.lr_lambdas
        rates = [base * factor(step) for base, factor in zip(lr_scheduler.base_lrs, factors, strict=True)]
        lr_scheduler._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            _set(group, "lr", rate)
        return
    for group, old in zip(optimizer.param_groups, trainer["optimizer"]["groups"], strict=True):
        new = options_of(group)
        for key, value in old.items():
            if key != "params":
                _set(group, key, tuple(value) if isinstance(new.get(key), tuple) else value)
    if lr_scheduler is not None:
        lr_scheduler.load_state_dict(state)


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    """Set an option; one that is a tensor, as torchao's optimizers have it, stays that tensor."""
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def restore_moments(
    optimizer: Optimizer, params: dict[str, nn.Parameter], tensors: Mapping[str, Weight], saved: dict[str, Any]
) -> None:
    """Set the state of each parameter from `tensors` and the `saved` entry about the optimizer.

    Directly: `Optimizer.load_state_dict` would cast moments to the parameters' dtype.
    """
    options = {param: group for group in optimizer.param_groups for param in group["params"]}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    optimizer.state.clear()
    for name, value in saved["values"].items():
        owner, _, key = name.partition("/")
        optimizer.state[params[owner]][key] = value
    for name, weight in tensors.items():
        owner, key, *part = name.split("/")
        param = params[owner]
        if part:
            parts[f"{owner}/{key}"][part[0]] = weight.read().to(param.device, copy=True)
        else:
            optimizer.state[param][key] = _placed(optimizer, options[param], param, key, weight)
    for name, about in saved.get("classes", {}).items():
        owner, _, key = name.partition("/")
        optimizer.state[params[owner]][key] = unflatten_tensor(parts[name], about)


def _placed(optimizer: Optimizer, options: dict[str, Any], param: nn.Parameter, key: str, weight: Weight) -> Tensor:
    """Read a tensor of a parameter's state to where the optimizer keeps it."""
    own = rows(param)
    value = weight.part(own.start, own.stop) if weight.shape == tuple(param.shape) else weight.read()
    if hasattr(optimizer, "new_state"):  # of torchtune_lite.optim
        state = optimizer.state[param] or optimizer.new_state(local(param.detach()))
        optimizer.state[param] = state
        return state[key].copy_(value)
    if getattr(optimizer, "is_paged", False) and key.startswith("state"):  # of bitsandbytes
        return optimizer.get_state_buffer(param, dtype=weight.dtype).copy_(value)
    counter = not weight.shape and not (options.get("capturable") or options.get("fused"))
    value = value.to(device="cpu" if counter else param.device, copy=True)
    return with_rows(param.detach(), value) if weight.shape == tuple(param.shape) else value
