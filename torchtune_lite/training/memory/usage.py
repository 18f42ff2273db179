"""The memory of a run: its parameters, their storage, and its peak."""

import contextlib
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from torchtune_lite.peft import is_quantized, num_bytes

GIB = 1024**3
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def parameter_summary(model: nn.Module) -> str:
    """Say how much of the model is trained: `trainable params 4,194,304 of 6,742,609,920 (0.06 %)`."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total = sum(size for size, _ in sizes)
    trainable = sum(size for size, requires_grad in sizes if requires_grad)
    return f"trainable params {trainable:,} of {total:,} ({trainable / max(1, total):.2%})".replace("%", " %")


def storage_summary(model: nn.Module) -> str:
    """Say how the weights are stored: `weights: 6,476,005,376 in NF4 (3.34 GB), 262,410,240 in bfloat16 (0.52 GB)`."""
    counts, sizes = Counter(), Counter()
    for parameter in model.parameters():
        kind = "NF4" if is_quantized(parameter) else str(parameter.dtype).removeprefix("torch.")
        counts[kind] += parameter.numel()
        sizes[kind] += num_bytes(parameter)
    parts = [f"{count:,} in {kind} ({_readable(sizes[kind])})" for kind, count in counts.most_common()]
    return f"weights: {', '.join(parts) or 'none'}"


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peaks since `reset_peak_memory`, in GiB, by metric name.

    CUDA: what the allocator's tensors took (`alloc`), what it held from the driver (`reserved`), and its blocks not yet
    free for use again (`active`). Elsewhere: the resident set of the process.
    """
    if device.type != "cuda":
        return {"peak_memory_resident": _peak_resident_bytes() / GIB}
    stats = torch.cuda.memory_stats(device)
    return {
        "peak_memory_active": stats.get("active_bytes.all.peak", 0) / GIB,
        "peak_memory_alloc": stats.get("allocated_bytes.all.peak", 0) / GIB,
        "peak_memory_reserved": stats.get("reserved_bytes.all.peak", 0) / GIB,
    }


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on `device`; None where that cannot be found out.

    A CPU's are what the system says is available, and not more than what is left of a container's limit (Linux).
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        free = next(int(line.split()[1]) * 1024 for line in MEMINFO.open() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((CGROUP / "memory.max").read_text())
        return min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free


def reset_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory` to the memory held now.

    A resident set can be reset on Linux only; elsewhere, or with a read-only /proc, its peak is the whole process's.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")  # proc(5): resets VmHWM


def _peak_resident_bytes() -> int:
    """Read VmHWM, which can be reset, where /proc has it; otherwise `ru_maxrss`, which cannot."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
