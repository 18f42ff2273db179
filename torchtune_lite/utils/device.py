"""The device of a run: the requested one, or an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torchtune_lite.errors import ConfigError, meant
from torchtune_lite.utils.logging import get_logger
from torchtune_lite.utils.wording import counted

if TYPE_CHECKING:
    import torch


def get_device(device: str = "auto") -> torch.device:
    """Return the device `cpu`, `cuda`, `cuda:N` or `mps`; `auto` takes a GPU or else the CPU, and logs which.

    A device that this machine lacks is a ConfigError, never a silent run on the CPU.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            chosen, name = "cuda", torch.cuda.get_device_name("cuda")
        elif torch.backends.mps.is_available():
            chosen, name = "mps", "Apple GPU"
        else:
            chosen, name = "cpu", counted(torch.get_num_threads(), "thread")
        get_logger().info(f"device: auto chose {chosen} ({name})")
        return torch.device(chosen)

    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        instead = meant(device, ("cuda",))
        raise ConfigError(f"device: {device!r} is not known; choose auto, cpu, cuda, cuda:N or mps{instead}")
    if device.startswith("cuda"):
        _check_cuda(device)
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: mps needs a Mac with Apple silicon; set device: cpu or device: auto")
    return torch.device(device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy on `device` of a tensor in host memory, itself on a CPU; on a GPU the host does not wait for it.

    From page-locked memory: a copy from other memory waits for all that the GPU has been told to compute.
    """
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=device.type != "mps")  # to a Mac, the source must outlive the copy


def _check_cuda(device: str) -> None:
    import torch

    index = torch.device(device).index or 0
    if torch.version.cuda is None and torch.version.hip is None:
        reason = f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build from pytorch.org"
    elif not torch.cuda.is_available():
        reason = "torch finds no GPU here; check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES"
    elif index >= torch.cuda.device_count():
        reason = f"this machine has {counted(torch.cuda.device_count(), 'GPU')}, from cuda:0 on; choose one of them"
    else:
        return
    raise ConfigError(f"device: {device} is not available: {reason}, or set device: cpu or device: auto")
