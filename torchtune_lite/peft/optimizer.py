"""Options of their own for A and B: LoRA+ (Hayou et al., arXiv 2402.12354, section 4), and weight decay."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

SLOW = ("lora_a.weight", "tok_embeddings.weight", "output.weight", ".rows")
"""Ends of the names of what does not learn at the rate of B."""


def adapter_optimizer(
    model: nn.Module,
    build: Callable[[list[Any]], Optimizer],
    loraplus_lr_ratio: float | None = None,
    weight_decay_b: float | None = None,
) -> Optimizer:
    """Return `build(params)`, the optimizer of what `model` trains.

    With `loraplus_lr_ratio`, A and embeddings learn at the optimizer's learning rate and B, with whatever else an
    adapter trains, at that rate times the ratio; the paper advises 16. `weight_decay_b` is the decay of these; None:
    the optimizer's, as A's. ValueError where no adapter has an A, or the optimizer no such option.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if loraplus_lr_ratio is None and weight_decay_b is None:
        return build(list(trained.values()))
    of_a = [param for name, param in trained.items() if name.endswith(SLOW)]
    others = [param for name, param in trained.items() if not name.endswith(SLOW)]
    if not any(name.endswith("lora_a.weight") for name in trained):
        keys = "loraplus_lr_ratio and weight_decay_b are"
        raise ValueError(f"{keys} for LoRA's A and B, which the adapters of this model do not have")
    optimizer = build([{"params": of_a}, {"params": others}])
    group = optimizer.param_groups[1]
    if loraplus_lr_ratio is not None:
        group["lr"] = group["lr"] * loraplus_lr_ratio  # before a schedule reads it
    if weight_decay_b is not None:
        if "weight_decay" not in group:
            raise ValueError(f"weight_decay_b: {type(optimizer).__name__} has no weight_decay")
        group["weight_decay"] = weight_decay_b
    return optimizer
