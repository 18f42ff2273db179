"""What each lever adds: a LoRA and a QLoRA epoch of short samples on a CPU, from every lever off to every lever on.

    python benchmarks/ladder.py [--threads 1] [--rounds 2] [--plot docs/ladder.png]

Each rung adds one lever to those before it and runs in processes of its own, in turns. The model is a Llama shape of 69
million parameters with random weights, rank 8 on q, v, output and the MLP, AdamW, four samples a step whose lengths are
like Alpaca's (log-normal, mean 138 tokens, at most 512), or four packs of 512 tokens. Printed are the real tokens (no
padding) per second of the steps but the first, each in the least time of the rounds, and the peak of the process beyond
what it held before the first step.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH, PACK, VOCAB, RANK = 4, 512, 8000, 8
SHAPE = dict(num_layers=4, num_heads=16, num_kv_heads=16, embed_dim=1024, max_seq_len=PACK, intermediate_dim=2816)
OFF = dict(dtype="float32", loss=False, attention=False, norm=False, fused_lora=False, collate="padded", packed=False,
           checkpointed=0, quantize_base=False, native=True, mlp_tile=None)  # fmt: skip
LORA = {
    "LoRA in fp32, padded, no lever": {},
    "bf16": {"dtype": "bfloat16"},
    "loss without logits that are kept": {"loss": True},
    "short attention written out": {"attention": True},
    "RMSNorm in few passes": {"norm": True},
    "projections of one input together": {"fused_lora": True},
    "samples joined, not padded": {"collate": "padding_free"},
    "samples packed": {"packed": True},
    "every second layer recomputed": {"checkpointed": 2},
    "every layer recomputed": {"checkpointed": 1},
}
QLORA = {
    "QLoRA, NF4 by torch's operators": {"quantize_base": True, "native": False, "checkpointed": 0},
    "NF4 by compiled loops": {"native": True},
    "every layer recomputed (QLoRA)": {"checkpointed": 1},
    "feed-forward 256 tokens at a time": {"mlp_tile": 256},
}


def rungs() -> dict[str, dict[str, Any]]:
    """Return the settings of each rung: those of the one before, and its own."""
    settings, found = OFF, {}
    for name, changed in (LORA | QLORA).items():
        settings = settings | changed
        found[name] = settings
    return found


def make_samples(count: int) -> list[dict[str, list[int]]]:
    """Return samples of random tokens, each labelled with the next."""
    rng = random.Random(0)
    lengths = [max(8, min(PACK, round(rng.lognormvariate(4.75, 0.6)))) for _ in range(count)]
    rows = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]
    return [{"tokens": tokens, "labels": [*tokens[1:], -100]} for tokens in rows]


def build(settings: dict[str, Any]) -> Any:
    """Build the model of a rung."""
    import torch
    from torch import nn
    from torchtune_lite.models.llama2 import lora_llama2

    from torchtune_lite.modules import RMSNorm

    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    model = lora_llama2(
        vocab_size=VOCAB, **SHAPE, lora_attn_modules=["q_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True,
        lora_rank=RANK, fused_lora=settings["fused_lora"], quantize_base=settings["quantize_base"],
        mlp_tile=settings["mlp_tile"],
    ).train()  # fmt: skip
    if every := settings["checkpointed"]:
        model.activation_checkpointing = range(every - 1, len(model.layers), every)
    if not settings["norm"]:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, RMSNorm):
                    plain = nn.RMSNorm(SHAPE["embed_dim"], eps=child.eps)
                    setattr(parent, name, plain.requires_grad_(False))
    return model


def child(name: str, count: int) -> dict[str, Any]:
    """Train an epoch on one rung; return its seconds and real tokens by step, and its peak in MiB."""
    settings = rungs()[name]
    os.environ["TORCHTUNE_LITE_NATIVE"] = str(int(settings["native"]))
    import torch
    import torch.nn.functional as F

    from torchtune_lite import data
    from torchtune_lite.modules.loss import LinearCrossEntropyLoss
    from torchtune_lite.training import peak_memory, reset_peak_memory

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if not settings["attention"]:
        sys.modules["torchtune_lite.modules.attention"].SHORT = 0
    model, linear_loss, cpu = build(settings), LinearCrossEntropyLoss(), torch.device("cpu")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    samples = make_samples(count)
    dataset = data.PackedDataset(samples, PACK) if settings["packed"] else samples
    batches = data.Batches(dataset, BATCH, seed=0, shuffle=True, pad_id=0, collate=settings["collate"])

    def loss_sum(batch: dict) -> torch.Tensor:
        if settings["loss"]:
            hidden = model(batch["tokens"], seq_lens=batch.get("seq_lens"), skip_output=True)
            return linear_loss(model.output, hidden, batch["labels"])
        logits = model(batch["tokens"], seq_lens=batch.get("seq_lens")).flatten(0, 1)
        return F.cross_entropy(logits.float(), batch["labels"].flatten(), reduction="sum")

    reset_peak_memory(cpu)
    before, seconds, tokens = peak_memory(cpu)["peak_memory_resident"], [], []
    for batch in batches.epoch(0):
        start = time.perf_counter()
        (loss_sum(batch) / data.num_label_tokens([batch])).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        tokens.append(data.num_real_tokens([batch], 0))
    peak = peak_memory(cpu)["peak_memory_resident"] - before
    return {"seconds": seconds, "tokens": tokens, "peak": peak * 1024}


def climb(rounds: int, samples: int) -> dict[str, dict[str, float]]:
    """Return the speed in real tokens a second, and the least peak, in MiB, of each rung."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in rungs()}
    for name in list(runs) * rounds:
        words = [sys.executable, __file__, "--child", name, "--samples", str(samples)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}:\n{done.stderr}")
        runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    found = {}
    for name, each in runs.items():
        seconds = [min(step) for step in zip(*(run["seconds"] for run in each), strict=True)]
        speed = sum(each[0]["tokens"][1:]) / sum(seconds[1:])
        found[name] = {"speed": speed, "peak": min(run["peak"] for run in each)}
    return found


def plot(found: dict[str, dict[str, float]], path: Path) -> None:
    """Draw speed and memory of each rung."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.42 * len(found) + 1.2), sharey=True, layout="constrained")
    for axis, key, title in zip(axes, ("speed", "peak"), ("real tokens a second", "added memory, MiB"), strict=True):
        values = [each[key] for each in found.values()]
        bars = axis.barh(list(found), values, color=["#4c72b0" if name in LORA else "#55a868" for name in found])
        axis.bar_label(bars, fmt="{:,.0f}", padding=3)
        axis.set_title(title)
        axis.set_xlim(0, 1.15 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print a row for each rung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--plot", type=Path, metavar="PATH")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.samples)))
        return
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "GOMP_SPINCOUNT": "2000"}
    found = climb(args.rounds, args.samples)
    print(f"Python {platform.python_version()}, {platform.machine()}, {args.threads} threads\n")
    print("| each row adds | real tokens/s | × the row before | × the first | added memory |\n" + "|---" * 5 + "|")
    first = before = next(iter(found.values()))["speed"]
    for name, each in found.items():
        step, whole = each["speed"] / before, each["speed"] / first
        print(f"| {name} | {each['speed']:,.0f} | {step:.2f} | {whole:.2f} | {each['peak']:,.0f} MiB |")
        before = each["speed"]
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
