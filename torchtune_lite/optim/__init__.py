"""Additions to `torch.optim`: AdamW for bfloat16 weights and for state off the device, schedules with warm-up."""

from torchtune_lite.optim.adamw import MasterAdamW, StochasticAdamW
from torchtune_lite.optim.cpu_offload import CPUOffloadAdamW
from torchtune_lite.optim.in_backward import StepInBackward
from torchtune_lite.optim.paged import PagedAdamW
from torchtune_lite.optim.schedules import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

__all__ = [
    "CPUOffloadAdamW",
    "MasterAdamW",
    "PagedAdamW",
    "StepInBackward",
    "StochasticAdamW",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_linear_schedule_with_warmup",
    "get_wsd_schedule",
]
