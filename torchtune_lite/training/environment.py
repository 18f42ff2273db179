"""What a run computes in and draws from: the dtype and the random seed."""

import random
import secrets
from contextlib import nullcontext

import numpy as np
import torch

from torchtune_lite.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def get_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the torch dtype called `fp32`, `bf16` or `fp16`; a ConfigError where `device` cannot compute in it."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if dtype == "bf16" and not _has_bf16(device):
        raise ConfigError(f"dtype: bf16 is not supported by {device.type} on this machine; set dtype: fp32 or fp16")
    return DTYPES[dtype]


def get_precision(
    dtype: str, device: torch.device, *, mixed: bool = False
) -> tuple[torch.dtype, torch.autocast | nullcontext]:
    """Returns the dtype of the weights, and a context to compute in, which does nothing unless `mixed`.

    `mixed` keeps weights in float32 and computes in `dtype` what may lose precision; ConfigError if that is `fp32` too.
    """
    computed = get_dtype(dtype, device)
    if not mixed:
        return computed, nullcontext()
    if computed == torch.float32:
        raise ConfigError("mixed_precision: True is for dtype: bf16 or fp16; with dtype: fp32, set it False")
    return torch.float32, torch.autocast(device.type, computed)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return True


def set_seed(seed: int | None = None) -> int:
    """Seeds Python, NumPy and torch (every device) and returns the seed; None draws one."""
    if seed is None:
        seed = secrets.randbelow(2**32)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: {seed} is out of range; choose a number from 0 to {2**32 - 1}, or null to draw one")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
