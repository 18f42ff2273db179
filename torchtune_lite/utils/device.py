"""Which device a run uses: the one that was asked for, or an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torchtune_lite.errors import ConfigError, meant
from torchtune_lite.utils.logging import get_logger

if TYPE_CHECKING:
    import torch


def get_device(device: str = "auto") -> torch.device:
    """Returns the device `cpu`, `cuda`, `cuda:N` or `mps`; `auto` takes a CUDA GPU or else the CPU and logs which.

    A device that this machine lacks is a ConfigError, never a silent run on the CPU.
    """
    import torch

    if device == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{torch.get_num_threads()} threads"
        get_logger().info(f"device: auto chose {chosen.type} ({name})")
        return chosen

    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        instead = meant(device, ("cuda",))
        raise ConfigError(f"device: {device!r} is not known; choose auto, cpu, cuda, cuda:N or mps{instead}")
    if device.startswith("cuda"):
        _check_cuda(device)
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps needs a Mac with Apple silicon; set device: cpu or device: auto")
    return torch.device(device)


def _check_cuda(device: str) -> None:
    import torch

    index = torch.device(device).index or 0
    if torch.version.cuda is None and torch.version.hip is None:
        reason = f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build from pytorch.org"
    elif not torch.cuda.is_available():
        reason = "torch finds no GPU here; check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES"
    elif index >= torch.cuda.device_count():
        reason = f"this machine has {torch.cuda.device_count()} GPU(s), counted from cuda:0; choose one of them"
    else:
        return
    raise ConfigError(f"device: {device} is not available: {reason}, or set device: cpu or device: auto")
