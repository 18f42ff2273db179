"""What a run computes in and draws from: the dtype and the random seed."""

import random
import secrets

import numpy as np
import torch

from torchtune_lite.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def get_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the torch dtype called `fp32` or `bf16`; a ConfigError where `device` cannot compute in it."""
    if dtype not in DTYPES:
        hint = "; fp16 needs loss scaling, which is not served: use bf16" if dtype == "fp16" else ""
        raise ConfigError(f"dtype: {dtype!r} is not known; choose one of {', '.join(DTYPES)}{hint}")
    if dtype == "bf16" and not _has_bf16(device):
        raise ConfigError(f"dtype: bf16 is not supported by {device.type} on this machine; set dtype: fp32")
    return DTYPES[dtype]


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
