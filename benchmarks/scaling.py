"""Steps in one, two and four processes with the same batch, and the arithmetic of large models on 8 GPUs.

    python benchmarks/scaling.py [--processes 1 2 4] [--steps 6]

A Llama shape of 21 million parameters with random weights in fp32, adapters on all projections, eight micro-batches of
128 tokens a step, however many processes share them, on a CPU by gloo. Printed are the tokens per second after the
first step; the time that collectives took in a step, of its length, waiting for others included; what a process holds
of the weights; and by how much reading them raised the peak of its memory. Then, from the shapes alone, what 7B and 70B
take on 8 × H100: no measurement.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.models import FAMILIES, from_checkpoint
from torchtune_lite.models.families import hf_config
from torchtune_lite.models.llama import SIZES
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import num_bytes
from torchtune_lite.training import peak_memory, reset_peak_memory
from torchtune_lite.training.distributed import Processes
from torchtune_lite.training.run.progress import Progress
from torchtune_lite.training.settings import Parallel
from torchtune_lite.training.sharded import Shards
from torchtune_lite.training.step.gradients import Gradients
from torchtune_lite.utils.world import World

SHAPE = DecoderConfig(
    vocab_size=4096, num_layers=4, num_heads=8, num_kv_heads=8, embed_dim=512, intermediate_dim=2048, max_seq_len=512
)
LORA = {
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 16,
    "lora_alpha": 32,
}
METHODS = {"LoRA": LORA, "QLoRA": LORA | {"quantize_base": True}}
BATCHES, TOKENS = 8, 128
NF4_BYTES = 0.5 + 1 / 64 + 2 / 16384
GPUS, BANDWIDTH, FLOPS = 8, 300e9, 400e12  # of a node; bytes/s between its GPUs; FLOP/s that a GPU reaches


def write_base(folder: Path) -> None:
    """Write a model of `SHAPE` with random weights."""
    family = FAMILIES["llama"]
    (folder / "config.json").write_text(json.dumps(hf_config(family, SHAPE)))
    with torch.device("meta"):
        shapes = {family.to_hf(name): p.shape for name, p in from_checkpoint(**vars(SHAPE)).named_parameters()}
    torch.manual_seed(0)
    weights = {name: Weight.of(0.02 * torch.randn(shape)) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", weights)


def world_of(way: str) -> World:
    """Join the processes of this run."""
    cpu = torch.device("cpu")
    if way == "one":
        return World(cpu)
    return Processes(cpu, timeout=600) if way == "ddp" else Shards(cpu, Parallel(data=way))


def work(folder: str, method: str, way: str, steps: int) -> dict[str, Any]:
    """Train a few steps as one of the processes; return what was measured here."""
    world = world_of(way)
    checkpointer = FullModelHFCheckpointer(folder)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **METHODS[method])
    world.shard(model)
    reset_peak_memory(world.device)
    before = peak_memory(world.device)["peak_memory_resident"]
    checkpointer.load(model, device=world.device, dtype=torch.float32)
    found = {"load": peak_memory(world.device)["peak_memory_resident"] - before}
    found["held"] = sum(map(num_bytes, model.parameters())) / 2**30
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    grads, loss_fn = Gradients(optimizer, Progress(seed=0), 1.0, world=world), LinearCrossEntropyLoss()
    tokens = torch.randint(3, SHAPE.vocab_size, (BATCHES, 1, TOKENS), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        mine = tokens[world.rank :: world.size]
        grads.start(len(mine), tokens.numel())
        for each in mine:
            hidden = model(each, seq_lens=[TOKENS], skip_output=True)
            loss = loss_fn(model.output, hidden, each.roll(-1, 1)) / tokens.numel()
            grads.backward(loss)
        grads.clip(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    world.sum()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - start) / steps
    with torch.profiler.profile() as profiler:
        step()
    collectives = sum(each.cpu_time_total for each in profiler.key_averages() if each.key.startswith("gloo:")) / 1e6
    found |= {"speed": tokens.numel() / seconds, "collectives": collectives / seconds}
    world.close()
    return found


def measure(folder: Path, method: str, way: str, processes: int, steps: int) -> dict[str, float]:
    """Run `work` in so many processes; return the largest of what each found, of speeds the least."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": port}
    words = [sys.executable, __file__, "--work", str(folder), method, way, "--steps", str(steps)]
    workers = [
        subprocess.Popen(
            words,
            env=env | {"MASTER_ADDR": "localhost", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit(f"{method}, {way}, {processes} processes: a process failed")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {name: (min if name == "speed" else max)(each[name] for each in found) for name in found[0]}


def linear_sizes(config: DecoderConfig) -> tuple[int, int]:
    """Return the weights of the projections of one layer, and their inputs and outputs together."""
    c, kv = config, config.num_kv_heads * config.head_dim
    width = c.num_heads * c.head_dim
    shapes = [(c.embed_dim, width), *[(c.embed_dim, kv)] * 2, (width, c.embed_dim)]
    shapes += [(c.embed_dim, c.intermediate_dim)] * 2 + [(c.intermediate_dim, c.embed_dim)]
    return sum(a * b for a, b in shapes), sum(a + b for a, b in shapes)


def arithmetic(name: str, config: DecoderConfig, kind: str, tokens: int, rank: int = 16) -> str:
    """Return a row: what a GPU holds and gathers, what it sends for a micro-batch, and the time of that and of work."""
    weights, ends = linear_sizes(config)
    layers, root = config.num_layers, 2 * config.vocab_size * config.embed_dim
    width = {"full": 2.0, "LoRA": 2.0, "QLoRA": NF4_BYTES}[kind]
    base, share = layers * weights * width, (GPUS - 1) / GPUS
    trained = (layers * weights + root) * 14 - base - 2 * root if kind == "full" else layers * ends * rank * 16
    held = (base + 2 * root + trained) / GPUS
    gathered = 2 * weights * width + 2 * root
    sent = 2 * share * base + (share * (base + 2 * root) if kind == "full" else 0)
    passes = 4 if kind == "full" else 3  # forward, again, gradient of the input, of the weight
    seconds = passes * 2 * layers * weights * tokens / FLOPS
    numbers = f"{held / 1e9:.1f} | {gathered / 1e9:.1f} | {sent / 1e9:.1f} | {sent / BANDWIDTH:.2f} | {seconds:.1f}"
    return f"| {name}, {kind}, {tokens:,} tokens | {numbers} | {sent / BANDWIDTH / seconds:.0%} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.work:
        print(json.dumps(work(*args.work, args.steps)))
        return
    print("| | tokens/s | collectives in a step | weights held, MiB | more at load, MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        write_base(Path(name))
        for method in METHODS:
            for processes in args.processes:
                for way in ("one",) if processes == 1 else ("ddp", "fsdp"):
                    row = measure(Path(name), method, way, processes, args.steps)
                    where = "one process" if processes == 1 else f"{processes}, {way}"
                    print(
                        f"| {method}, {where} | {row['speed']:,.0f} | {row['collectives']:.0%} | "
                        f"{1024 * row['held']:.0f} | {1024 * row['load']:.0f} |",
                        flush=True,
                    )
    print(
        f"\n| on {GPUS} × H100 | held, GB | gathered, GB | sent, GB | s at 300 GB/s | work, s at 400 TFLOP/s | share |"
    )
    print("|---|---|---|---|---|---|---|")
    print(arithmetic("7B", SIZES["llama2_7b"], "full", 16_384))
    for kind in ("LoRA", "QLoRA"):
        print(arithmetic("70B", SIZES["llama2_70b"], kind, 8_192))
    print(f"\n{os.cpu_count()} cores, one thread a process, torch {torch.__version__}")


if __name__ == "__main__":
    main()
