"""Measure what a save costs: writing it, comparing it with the live model, and doing both beside the training.

    python benchmarks/save.py [--layers 6] [--threads 1]

A Llama shape of 113 million parameters (17 million a layer) in bf16 with random weights, on the CPU: every weight
trained, LoRA and QLoRA, rank 8 on q and the MLP. Each number is the least of five. Written is from the merge to the
renamed folder, with all bytes hashed and on the disk, without the optimizer; verified is what `verify_saves` adds. Then
steps of 2 × 64 tokens: one alone, the longest beside a save in the background, and after how long the next save can
start.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the tests' base model

import torch
from torch import nn

from tests.checkpoint import memory
from torchtune_lite import checkpoint
from torchtune_lite.models import llama2
from torchtune_lite.training import Checkpoints, Progress

KINDS = {"full": None, "LoRA": memory.ADAPTERS, "QLoRA": memory.ADAPTERS | {"quantize_base": True}}
REPEATS = 5


def build(checkpointer: checkpoint.FullModelHFCheckpointer, adapters: dict | None) -> nn.Module:
    """Build the model of a kind, with adapters that are not zero."""
    with torch.device("meta"):
        args = checkpointer.decoder_args
        model = llama2.lora_llama2(**args, **adapters) if adapters else llama2.llama2(**args)
    checkpointer.load(model, device="cpu", dtype=torch.bfloat16)
    for name, param in model.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(param, std=0.01)
    return model


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Saves:
    """Saves of one model, each to a new folder."""

    def __init__(self, folder: Path, checkpointer: checkpoint.FullModelHFCheckpointer, model: nn.Module) -> None:
        self.folder, self.checkpointer, self.model, self.count = folder, checkpointer, model, 0
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        self.tokens = torch.randint(0, model.config.vocab_size, (2, model.config.max_seq_len))

    def name(self) -> str:
        self.count += 1
        return f"step_{self.count}"

    def in_the_foreground(self, verify: bool) -> float:
        """Return the seconds of a save."""
        return seconds(lambda: self.checkpointer.save(self.folder / self.name(), self.model, verify=verify))

    def step(self) -> float:
        """Return the seconds of a training step."""

        def run() -> None:
            self.model(self.tokens, skip_output=True).float().square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return seconds(run)

    def in_the_background(self, verify: str | None) -> tuple[list[float], float]:
        """Return the seconds of each step while a save runs, and those until it is done."""
        checkpoints = Checkpoints(self.folder, background=True, verify=verify)
        name, start, steps = self.name(), time.perf_counter(), []
        progress = Progress(seed=0, global_step=self.count)
        state = checkpoint.gather(self.model, self.optimizer, None, {"global_step": self.count})
        checkpoints.save(name, progress, self.checkpointer.save, self.model, state)
        while not (self.folder / name).exists():
            steps.append(self.step())
        checkpoints.poll(wait=True)
        return steps, time.perf_counter() - start


def row(saves: Saves) -> list[str]:
    """Measure one kind."""
    saves.in_the_foreground(True)  # imports, tables
    saves.step()
    pairs = [(saves.in_the_foreground(False), saves.in_the_foreground(True)) for _ in range(REPEATS)]
    written, both = map(min, zip(*pairs, strict=True))
    cells = [f"{written:.2f} s", f"{both - written:.2f} s", f"{min(saves.step() for _ in range(REPEATS)):.2f} s"]
    for verify in (None, "all"):
        steps, until = zip(*(saves.in_the_background(verify) for _ in range(REPEATS)), strict=True)
        cells.append(f"{min(map(max, steps)):.2f} s, {min(until):.2f} s")
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="save-") as name:
        base = memory.write_base(Path(name) / "base", torch.bfloat16, args.layers)
        for kind, adapters in KINDS.items():
            checkpointer = checkpoint.FullModelHFCheckpointer(base)
            rows[kind] = row(Saves(Path(name) / kind, checkpointer, build(checkpointer, adapters)))
    size = 2 * (2 * memory.NUM_LARGEST + args.layers * (4 * 1024**2 + 3 * 1024 * 4096)) / 1e6
    print(f"{size:.0f} MB of weights, torch {torch.__version__}, threads {args.threads}\n")
    print("| | written | verified | a step | beside a save, until the next | beside a verified save, until the next |")
    print("|---|---|---|---|---|---|")
    for kind, cells in rows.items():
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
