"""What a step of an optimizer takes, in time and in bytes a weight, and what a step in the backward pass saves.

    python benchmarks/optimizers.py [--threads 1]

Weights are those of 8 layers of width 1,024; adapters those of rank 8 on 6 projections of a 7B model, 384 tensors with
17.9 million weights. Times are the least of 7 steps; bytes are those of weight, gradient and state.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchtune_lite import optim
from torchtune_lite.training import peak_memory, reset_peak_memory

CPU = torch.device("cpu")
OPTIMIZERS = {
    "torch.optim.AdamW(fused=True)": lambda params: torch.optim.AdamW(params, fused=True),
    "MasterAdamW": optim.MasterAdamW,
    "StochasticAdamW": optim.StochasticAdamW,
    "PagedAdamW": optim.PagedAdamW,
    "CPUOffloadAdamW": optim.CPUOffloadAdamW,
}
LAYER = [(1024, 1024)] * 4 + [(2816, 1024)] * 2 + [(1024, 2816)]
ADAPTERS = [
    shape for _ in range(32) for i, o in [(4096, 4096)] * 3 + [(4096, 11008)] * 2 + [(11008, 4096)]
    for shape in ((8, i), (o, 8))
]  # fmt: skip


def made(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[nn.Parameter]:
    """Make parameters with gradients."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def least_ms(run: Callable[[], object]) -> float:
    """Return the least milliseconds of 7 runs after one that warms up."""
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) * 1000


def bytes_per_weight(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> float:
    """Count weight, gradient and state."""
    kept = [each for param in params for each in (param, param.grad, *optimizer.state[param].values())]
    return sum(each.nbytes for each in kept if isinstance(each, Tensor)) / sum(param.numel() for param in params)


def peak_mib(in_backward: bool) -> float:
    """Return what a step of SGD on 32 layers of 16 MiB adds to the memory at its peak."""
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(32)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if in_backward:
        optim.StepInBackward(optimizer).armed = True
    x = torch.randn(8, 2048)
    model(x).sum().item()
    reset_peak_memory(CPU)
    before = peak_memory(CPU)["peak_memory_resident"]
    model(x).sum().backward()
    optimizer.step()
    return (peak_memory(CPU)["peak_memory_resident"] - before) * 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("\n| optimizer | dtype | bytes a weight | step |\n|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for name, make in OPTIMIZERS.items():
            params = made(LAYER * 8, dtype)
            optimizer = make(params)
            ms = least_ms(optimizer.step)
            print(f"| {name} | {dtype} | {bytes_per_weight(optimizer, params):.1f} | {ms:.0f} ms |")
    print("\n| adapters, float32 | step | clip_grad_norm |\n|---|---|---|")
    flat = [(sum(a * b for a, b in ADAPTERS),)]
    for name, shapes, options in (
        ("384 tensors", ADAPTERS, {}),
        ("384 tensors, fused", ADAPTERS, {"fused": True}),
        ("one flat buffer, fused", flat, {"fused": True}),
    ):
        params = made(shapes, torch.float32)
        ms = least_ms(torch.optim.AdamW(params, **options).step)
        clip = least_ms(lambda params=params: nn.utils.clip_grad_norm_(params, 1e9))
        print(f"| {name} | {ms:.1f} ms | {clip:.1f} ms |")
    print("\n| 512 MiB of weights | peak that a step adds |\n|---|---|")
    for in_backward in (True, False):
        print(f"| step {'in' if in_backward else 'after'} the backward pass | {peak_mib(in_backward):.0f} MiB |")


if __name__ == "__main__":
    main()
