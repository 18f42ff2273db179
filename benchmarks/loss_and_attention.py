"""Two parts of a step beside the plain ways to compute them: the loss, and attention of short sequences on a CPU.

    python benchmarks/loss_and_attention.py [--threads 1]

Prints the least time of the runs, taken in turns, of a forward and backward pass, and for the loss the peak of memory
that it adds. The loss is beside cross-entropy over all logits; attention is beside torch's fused one.
"""

import argparse
import ctypes
import platform
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.modules import attention
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training import peak_memory, reset_peak_memory

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES = ((4, 16, 64, 64), (4, 16, 170, 64), (2, 16, 512, 64), (1, 32, 512, 128), (1, 16, 1024, 64))  # b, h, s, e


def all_logits(output: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum the loss the plain way."""
    return F.cross_entropy(output(hidden).flatten(0, 1).float(), labels.flatten(), reduction="sum")


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the least seconds of each, and the least of the peaks of memory that it adds, in MiB."""
    least = dict.fromkeys(runs, (float("inf"), float("inf")))
    for _ in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            reset_peak_memory(CPU)
            before = peak_memory(CPU)["peak_memory_resident"]
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            peak = (peak_memory(CPU)["peak_memory_resident"] - before) * 1024
            least[name] = min(least[name][0], seconds), min(least[name][1], peak)
    return least


def losses(rounds: int) -> None:
    """Print the table of the loss: 2048 tokens of width 1024, 32,000 words, a frozen output projection."""
    print("\n| loss | labels | all logits | ours | times as fast | of its memory |\n|---|---|---|---|---|---|")
    for name, dtype in DTYPES.items():
        for share in (1.0, 0.3):
            torch.manual_seed(0)
            output = nn.Linear(1024, 32_000, bias=False, dtype=dtype).requires_grad_(False)
            hidden = torch.randn(2, 1024, 1024, dtype=dtype, requires_grad=True)
            labels = torch.randint(0, 32_000, (2, 1024)).masked_fill_(torch.rand(2, 1024) >= share, -100)

            def step(loss: Callable[..., Tensor], inputs: tuple = (output, hidden, labels)) -> None:
                loss(*inputs).backward()
                inputs[1].grad = None

            both = {"plain": all_logits, "ours": LinearCrossEntropyLoss()}
            found = in_turns({key: lambda loss=loss, step=step: step(loss) for key, loss in both.items()}, rounds)
            cells = " | ".join(f"{seconds:.2f} s, {peak:,.0f} MiB" for seconds, peak in found.values())
            (plain, plain_peak), (ours, ours_peak) = found.values()
            print(f"| {name} | {share:.0%} | {cells} | {plain / ours:.2f} | {ours_peak / plain_peak:.2f} |")


def attentions(rounds: int) -> None:
    """Print the table of attention in bf16."""
    print("| attention, bf16: b, h, s, e | fused | ours | times as fast |\n|---|---|---|---|")
    for b, h, s, e in SHAPES:
        torch.manual_seed(0)
        qkv = [torch.randn(b, s, h, e).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]
        probe = torch.randn(b, s, h, e).bfloat16().transpose(1, 2)
        runs = {
            "fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "ours": lambda q, k, v: attention(q, k, v),
        }
        found = in_turns(
            {k: lambda run=run, x=qkv, p=probe: torch.autograd.grad(run(*x), x, p) for k, run in runs.items()}, rounds
        )
        fused, ours = found["fused"][0], found["ours"][0]
        print(f"| {b}, {h}, {s}, {e} | {fused * 1e3:.1f} ms | {ours * 1e3:.1f} ms | {fused / ours:.2f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4, help="runs of each, of which the fastest counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {args.threads} threads\n"
    )
    attentions(args.rounds)
    if platform.system() == "Linux":
        ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed memory is given back at once
    losses(args.rounds)


if __name__ == "__main__":
    main()
