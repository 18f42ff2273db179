"""Training steps on all cores, alone and beside a busy neighbour, with and without OpenMP's spinning threads.

    python benchmarks/shared_cores.py [--steps 8]

OpenMP's threads spin while they wait for one another, and where a neighbour holds one of their cores, all wait for the
thread that lies there. Each row is a setting of GOMP_SPINCOUNT, in a process of its own; `tune run` sets 2000 unless
the environment has it. Printed are tokens per second of the median step of LoRA in bf16 on a Llama shape of 60 million
parameters, without a neighbour and beside one that computes on one core without end.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

SETTINGS = {"torch's own": None, "2000 (tune run)": "2000", "20000": "20000", "0": "0"}
NEIGHBOUR = "while True: pass"


def child(steps: int) -> None:
    """Take the steps and print the tokens per second of each."""
    import torch
    from torchtune_lite.models.llama2 import lora_llama2

    from torchtune_lite.modules.loss import LinearCrossEntropyLoss

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = lora_llama2(
        **dict(vocab_size=4000, num_layers=4, num_heads=16, num_kv_heads=16, embed_dim=1024, max_seq_len=512),
        **dict(lora_attn_modules=["q_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True, lora_rank=8),
    ).train()
    tokens = torch.randint(0, 4000, (4, 170))
    loss = LinearCrossEntropyLoss()
    speeds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        loss(model.output, model(tokens, skip_output=True), tokens).backward()
        speeds.append(tokens.numel() / (time.perf_counter() - start))
    print(json.dumps(speeds[2:]))


def measure(setting: str | None, steps: int, *, neighbour: bool) -> float:
    """Return the median speed of one process."""
    env = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    env |= {} if setting is None else {"GOMP_SPINCOUNT": setting}
    busy = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if neighbour else None
    try:
        command = [sys.executable, __file__, "--child", "--steps", str(steps)]
        found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    finally:
        if busy is not None:
            busy.kill()
    return statistics.median(json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    """Print a row for each setting, measured twice in turns; the better counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.steps)
        return
    found: dict[tuple[str, bool], float] = {}
    for _ in range(2):
        for name, setting in SETTINGS.items():
            for neighbour in (False, True):
                speed = measure(setting, args.steps, neighbour=neighbour)
                found[name, neighbour] = max(speed, found.get((name, neighbour), 0.0))
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; tokens/s\n")
    print("| GOMP_SPINCOUNT | alone | beside a busy neighbour |\n|---|---|---|")
    for name in SETTINGS:
        print(f"| {name} | {found[name, False]:,.0f} | {found[name, True]:,.0f} |")


if __name__ == "__main__":
    main()
