"""What this machine and its Python have: versions, devices, compilers, optional packages. Imports torch when asked."""

import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from torchtune_lite import __version__

BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What torch calls the instructions for products in bfloat16, those of x86 and those of ARM."""

MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, where a container limits them


def describe_machine() -> dict[str, dict[str, Any]]:
    """Return what JSON can hold, in sections; what cannot be found out says why, and nothing raises."""
    required, optional = _requirements()
    return {
        "versions": {"torchtune_lite": __version__, "python": platform.python_version()}
        | {"platform": platform.platform(), "executable": sys.executable}
        | {name: _version(name) for name in required},
        "devices": _tried(_devices),
        "nf4": _tried(_nf4),
        "optional": {
            name: _version(name) or f"not installed; pip install 'torchtune_lite[{extra}]'" for name, extra in optional
        },
        "wandb": {"mode": _wandb_mode()},
    }


def _tried(find_out: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return find_out()
    except Exception as error:  # a broken driver or library is what the user wants to see here
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> tuple[list[str], list[tuple[str, str]]]:
    """Return the required packages, and the optional ones with their extra, as the installed package declares them."""
    try:
        lines = metadata.requires("torchtune_lite") or []
    except metadata.PackageNotFoundError:
        lines = ["torch", "torchao", "sentencepiece", "safetensors"]
    required, optional = [], []
    for line in lines:
        name, extra = re.match(r"[\w.-]+", line)[0], re.search(r"extra == ['\"]([\w-]+)", line)
        if extra is None:
            required.append(name)
        elif extra[1] != "dev":
            optional.append((name, extra[1]))
    return required, optional


def _devices() -> dict[str, Any]:
    """Describe the CPU and each GPU; memory in GiB."""
    import torch

    devices = {
        "cpu": {
            "name": _cpu_name(),
            "threads": torch.get_num_threads(),
            "memory_gib": _gib(_memory()),
            "bf16": "in hardware" if cpu_has_bf16() else "emulated",
        }
    }
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = {
            "name": found.name,
            "memory_gib": _gib(found.total_memory),
            "bf16": "in hardware" if torch.version.hip or found.major >= 8 else "emulated",
        }
    if len(devices) == 1:
        built = torch.version.cuda or torch.version.hip
        devices["cuda"] = "no GPU found" if built else f"torch {torch.__version__} is built without CUDA"
    if torch.backends.mps.is_available():
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
        devices["mps"] = {"name": "Apple GPU", "bf16": "in hardware" if has_bf16 else "not there"}
    return devices


def cpu_has_bf16() -> bool:
    """Return whether this CPU has instructions for products in bfloat16, and this torch the library that uses them."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
    else:  # torch 2.11 and before
        has = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx_bf16": torch.cpu._is_amx_tile_supported()}
    return torch.backends.mkldnn.is_available() and any(has.get(name, False) for name in BF16)


def _cpu_name() -> str:
    try:
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Return the bytes of memory that this process may use at most."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return total


def free_memory(device: Any) -> int | None:
    """Return the bytes of memory that are free on a `torch.device`, or None where that cannot be found out."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = 1024 * int(re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.M)[1])
    except (OSError, TypeError):
        return None
    try:
        return min(free, int(CGROUP_LIMIT.read_text()) - int(CGROUP_LIMIT.with_name("memory.current").read_text()))
    except (OSError, ValueError):
        return free


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 1)


def _nf4() -> dict[str, str]:
    """Say what will decode NF4 weights on a CPU and on a GPU."""
    compiler = shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0])
    cpu = f"loops compiled with {compiler}" if compiler else "torch's operators, slower: no C++ compiler (install g++)"
    if os.environ.get("TORCHTUNE_LITE_NATIVE") == "0":
        cpu = "torch's operators, slower: TORCHTUNE_LITE_NATIVE=0"
    triton = _version("triton")
    gpu = f"Triton {triton}" if triton else "torch's operators, slower: Triton is not installed"
    return {"cpu": cpu, "cuda": gpu}


def _wandb_mode() -> str:
    if mode := os.environ.get("WANDB_MODE"):
        return f"{mode} (WANDB_MODE)"
    if os.environ.get("WANDB_API_KEY"):
        return "online (WANDB_API_KEY is set)"
    return "online where 'wandb login' was done; WANDB_MODE=offline needs no account"
