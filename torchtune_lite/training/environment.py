"""The dtype and the random seed of a run."""

import random
import secrets
import time
from contextlib import nullcontext

import numpy as np
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import get_logger
from torchtune_lite.utils.machine import cpu_has_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SLOW = 1.5
"""Times longer than in float32 that a product in 16 bits may take without a warning."""

log = get_logger()


def choose_dtype(dtype: str, device: torch.device) -> str:
    """Return the dtype to compute in: the one given, or for `auto` bf16 where `device` has it natively, else fp32.

    Logs what `auto` chose. Warns of 16 bits that a CPU only emulates, with how much slower they are, which it measures.
    """
    here = "this CPU" if device.type == "cpu" else "this GPU"
    if dtype == "auto":
        native = _has_bf16(device)
        log.info("dtype: auto chose %s", f"bf16 (native on {here})" if native else f"fp32 ({here} has no native bf16)")
        return "bf16" if native else "fp32"
    if device.type == "cpu" and (dtype == "fp16" or (dtype == "bf16" and not _has_bf16(device))):
        factor = slowdown(DTYPES[dtype])
        if factor > SLOW:
            log.warning(
                f"dtype: {dtype} is emulated by this CPU: a product takes about {factor:.2g} times as long as in fp32; "
                "set dtype: fp32, or auto"
            )
    return dtype


def slowdown(dtype: torch.dtype) -> float:
    """Measure how many times as long as in float32 a product and its gradient take on the CPU."""

    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(128, 512, dtype=dtype, requires_grad=True), torch.ones(512, 512, dtype=dtype)
        start = time.perf_counter()
        y = torch.nn.functional.linear(x, weight)
        torch.autograd.grad(y, x, torch.ones_like(y))
        return time.perf_counter() - start

    return min(seconds(dtype) for _ in range(3)) / min(seconds(torch.float32) for _ in range(3))


def get_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype called `fp32`, `bf16` or `fp16`; a ConfigError where `device` cannot compute in it."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if dtype == "bf16" and device.type != "cpu" and not _has_bf16(device):
        raise ConfigError(f"dtype: bf16 is not supported by {device.type} on this machine; set dtype: fp32 or fp16")
    return DTYPES[dtype]


def get_precision(
    dtype: str, device: torch.device, *, mixed: bool = False
) -> tuple[torch.dtype, torch.autocast | nullcontext]:
    """Return the dtype of the weights, and a context to compute in, which does nothing unless `mixed`.

    `mixed` keeps weights in float32 and computes in `dtype` what may lose precision; ConfigError if that is `fp32` too.
    """
    computed = get_dtype(dtype, device)
    if not mixed:
        return computed, nullcontext()
    if computed == torch.float32:
        raise ConfigError(
            "mixed_precision: True is for dtype: bf16 or fp16; with dtype: fp32, set it False (auto chooses fp32 where "
            "there is no bf16)"
        )
    return torch.float32, torch.autocast(device.type, computed)


def _has_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 itself; a CPU that does not emulates it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return cpu_has_bf16()


def set_seed(seed: int | None = None) -> int:
    """Seed Python, NumPy and torch (every device) and returns the seed; None draws one, and logs it."""
    if seed is None:
        seed = secrets.randbelow(2**32)
        log.info("seed: %d (drawn)", seed)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: {seed} is out of range; choose a number from 0 to {2**32 - 1}, or null to draw one")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
