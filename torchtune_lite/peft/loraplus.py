"""LoRA+: B learns faster than A (Hayou et al., arXiv 2402.12354, section 4)."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def adapter_optimizer(
    model: nn.Module, build: Callable[[list[Any]], Optimizer], loraplus_lr_ratio: float | None = None
) -> Optimizer:
    """Return `build(params)`, the optimizer of what `model` trains.

    With `loraplus_lr_ratio`, A learns at the optimizer's learning rate and B, with whatever else an adapter trains, at
    that rate times the ratio; the paper advises 16. ValueError where no adapter has an A.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if loraplus_lr_ratio is None:
        return build(list(trained.values()))
    slow = [param for name, param in trained.items() if name.endswith("lora_a.weight")]
    fast = [param for name, param in trained.items() if not name.endswith("lora_a.weight")]
    if not slow:
        raise ValueError("loraplus_lr_ratio is for LoRA's A and B, which the adapters of this model do not have")
    optimizer = build([{"params": slow}, {"params": fast}])
    group = optimizer.param_groups[1]
    group["lr"] = group["lr"] * loraplus_lr_ratio  # before a schedule reads it
    return optimizer
