"""NF4 weights: quantising, dequantising and a linear's forward and backward pass, ours beside torchao and bitsandbytes.

    python benchmarks/nf4.py [--device cuda] [--tokens 512] [--threads 1]

Prints, per size of a bf16 weight, the least time of the runs, taken in turns in one process, and the peak of memory
that the operation adds, its result included: on a CPU of a fresh process, on a GPU of the allocator. `dense` is the
product with the bf16 weight itself, the floor. bitsandbytes is left out where it is not installed.
"""

import argparse
import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

SIZES = ((2048, 2048), (4096, 4096), (11008, 4096), (4096, 11008))  # out, in
PEERS = ("torchao", *(["bitsandbytes"] if find_spec("bitsandbytes") else []))
OPERATIONS = ("quantise", "dequantise", "linear")


def operation(name: str, who: str, size: tuple[int, int], tokens: int, device: str) -> Callable[[], object]:
    """Prepare an operation on a random weight; what is returned runs it once."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    weight = (torch.randn(size, device=device) * 0.02).bfloat16()
    if who == "torchao":
        from torchao.quantization import to_nf4 as quantise
        from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import linear_nf4 as linear

        dequantise = type(quantise(torch.ones(128, 128))).get_original_weight
    elif who == "bitsandbytes":
        from bitsandbytes import functional, matmul_4bit

        quantise = partial(functional.quantize_4bit, quant_type="nf4", compress_statistics=True)
        dequantise, linear = lambda q: functional.dequantize_4bit(*q), lambda x, q: matmul_4bit(x, q[0].t(), q[1])
    elif who == "ours":
        from torchtune_lite.peft import dequantize as dequantise
        from torchtune_lite.peft import quantize as quantise
        from torchtune_lite.peft.frozen import linear
    else:
        quantise, linear = torch.clone, F.linear

    if name == "quantise":
        return partial(quantise, weight)
    quantised = quantise(weight)
    if name == "dequantise":
        return partial(dequantise, quantised)
    x = torch.randn(tokens, size[1], device=device).bfloat16().requires_grad_()
    grad = torch.randn(tokens, size[0], device=device).bfloat16()

    def step() -> None:
        x.grad = None
        linear(x, quantised).backward(grad)

    return step


def seconds(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Return the least time of each, run in turns."""
    import torch

    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):  # the first warms up
        for who, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            least[who] = min(least[who], time.perf_counter() - start)
    return least


def peak_bytes(device: str, run: Callable[[], object]) -> int:
    """Return what the first run of an operation adds to the memory in use, at its peak."""
    import torch

    from torchtune_lite.training import peak_memory, reset_peak_memory

    key = "peak_memory_alloc" if device == "cuda" else "peak_memory_resident"
    reset_peak_memory(torch.device(device))
    before = peak_memory(torch.device(device))[key]
    kept = run()
    peak = peak_memory(torch.device(device))[key] - before
    del kept
    return round(peak * 1024**3)


def measured_apart(name: str, who: str, size: tuple[int, int], args: argparse.Namespace) -> int:
    """Return `peak_bytes` of a process of its own."""
    words = ["--peak", name, who, *map(str, size), "--tokens", str(args.tokens), "--device", args.device]
    result = subprocess.run(
        [sys.executable, __file__, *words, "--threads", str(args.threads)], capture_output=True, text=True, check=True
    )
    return int(result.stdout.split()[-1])


def main() -> None:
    """Print a table for each operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, default=512, help="tokens through the linear")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, of which the fastest counts")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.peak:
        if platform.system() == "Linux":
            ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed memory is given back at once
        name, who, *size = args.peak
        # a small one first: tables, imports and kernels are made once
        operation(name, who, (128, 128), args.tokens, args.device)()
        print(peak_bytes(args.device, operation(name, who, tuple(map(int, size)), args.tokens, args.device)))
        return

    import torch

    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} threads"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", *PEERS))
    print(f"{libraries}, Python {platform.python_version()}, {platform.machine()}, {machine}")
    for name in OPERATIONS:
        floor = ["dense"] if name == "linear" else []
        print(f"\n| {name} | " + " | ".join(["ours", *(f"{who}, × ours" for who in (*PEERS, *floor))]) + " |")
        print("|---|" + "---|" * (1 + len(PEERS) + len(floor)))
        for size in SIZES:
            runs = {who: operation(name, who, size, args.tokens, args.device) for who in ("ours", *PEERS, *floor)}
            times = seconds(runs, args.rounds, args.device)
            del runs
            peaks = {who: measured_apart(name, who, size, args) for who in times}
            cells = [f"{times['ours'] * 1e3:,.1f} ms, {peaks['ours'] / 2**20:,.1f} MiB"]
            for who in (*PEERS, *floor):
                ratio = times[who] / times["ours"]
                cells.append(f"{times[who] * 1e3:,.1f} ms, {peaks[who] / 2**20:,.1f} MiB, **{ratio:.2f}**")
            print(f"| {size[0]} × {size[1]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
