"""Two GPUs, or more, against one: the same losses, the same files, and what it costs.

    python benchmarks/two_gpus.py [--processes 2] [--steps 20] [--config demo/address_qlora] [key=value ...]

For each way to share a model, the config is run by `tune run` in one process and in several, with as many micro-batches
in a step. Printed are the largest differences of losses and norms, tokens per second and the peak of memory. Ends with
an error where a loss differs by more than 1e-3. On a machine without GPUs it runs on the CPU. For a large model:

    python benchmarks/two_gpus.py --processes 8 --steps 3 --config qlora model_dir=/models/70B data=my.jsonl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "ddp": ["parallel.data=ddp"],
    "fsdp": ["parallel.data=fsdp"],
    "fsdp, activations recomputed": ["parallel.data=fsdp", "enable_activation_checkpointing=True"],
    "fsdp, layers kept": ["parallel.data=fsdp", "parallel.reshard_after_forward=False"],
    "hsdp": ["parallel.data=hsdp", "parallel.replicas=2"],
}
LIMIT = 1e-3


def train(recipe: str, config: str, out: Path, words: list[str], processes: int) -> tuple[list[dict], float]:
    """Run a recipe; return the metrics of its steps and the seconds that it took in all."""
    several = ["--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "torchtune_lite", "run", *several, recipe, "--config", config]
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, f"output_dir={out}", "seed=1", *words], check=True, env=env)
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row], time.perf_counter() - start


def line(name: str, one: list[dict], many: list[dict], seconds: float) -> tuple[str, float]:
    """Return a row of the table, and the largest difference of a loss."""
    loss = max(abs(a["loss"] - b["loss"]) for a, b in zip(one, many, strict=True))
    norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(one, many, strict=True))
    speed = sum(row["tokens_per_second"] for row in many[1:]) / max(len(many) - 1, 1)
    memory = max(value for row in many for name, value in row.items() if name.startswith("peak_memory"))
    return f"| {name} | {loss:.1e} | {norm:.1e} | {speed:,.0f} | {memory:.2f} | {seconds:.0f} |", loss


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--recipe", default="lora_finetune_distributed")
    parser.add_argument("--config", default="demo/address_qlora")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    common = [f"max_steps_per_epoch={args.steps}", "epochs=1", "log_every_n_steps=1", *args.overrides]
    table, worst = ["| | loss | norm | tokens/s | GiB, at most | seconds in all |", "|---|---|---|---|---|---|"], 0.0
    with tempfile.TemporaryDirectory(prefix="two-gpus-") as name:
        work = Path(name)
        together = f"gradient_accumulation_steps={args.processes}"
        one, seconds = train(args.recipe, args.config, work / "one", [*common, together], 1)
        table.append(line("one process", one, one, seconds)[0])
        for number, (way, words) in enumerate(WAYS.items()):
            if way == "hsdp" and (args.processes < 4 or args.processes % 2):
                continue
            words = [*common, *words, "gradient_accumulation_steps=1"]
            many, seconds = train(args.recipe, args.config, work / str(number), words, args.processes)
            row, loss = line(way, one, many, seconds)
            table.append(row)
            worst = max(worst, loss)
    print("\n".join(table))
    if worst > LIMIT:
        sys.exit(f"a loss differs by {worst:.1e}, more than {LIMIT:.0e}")


if __name__ == "__main__":
    main()
