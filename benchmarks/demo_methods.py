"""The demo's task by QLoRA, LoRA and full fine-tuning: accuracy, trained parameters, memory, time.

    python benchmarks/demo_methods.py

Each is a `tune run` of its own, one after the other, as `make demo` does it; prints a Markdown table and the machine.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = {
    "QLoRA": ("lora_finetune_single_device", "demo/address_qlora"),
    "LoRA": ("lora_finetune_single_device", "demo/address_qlora", "model.quantize_base=False"),
    "full": ("full_finetune_single_device", "demo/address_full"),
}


def tune(*words: str) -> tuple[str, float]:
    """Run `tune run`; return what it printed and its seconds."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "torchtune_lite", "run", *words], capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return result.stdout + result.stderr, time.perf_counter() - start


def score(checkpoint: str, folder: Path) -> float:
    """Return the share of the held-out addresses that a checkpoint answers exactly."""
    tune("exact_match_eval", "--config", "demo/address_eval", f"checkpointer.checkpoint_dir={checkpoint}",
         f"output_dir={folder}")  # fmt: skip
    return json.loads((folder / "exact_match.json").read_text())["exact_match"]


def main() -> None:
    """Run the methods and print the table."""
    work = Path(tempfile.mkdtemp(prefix="demo_methods_"))
    rows = [f"| base, before | {score('${asset:base}', work / 'base_eval'):.1%} | | | |"]
    for name, (recipe, config, *overrides) in METHODS.items():
        out = work / name
        printed, seconds = tune(recipe, "--config", config, f"output_dir={out}", *overrides)
        trained = re.search(r"trainable params ([\d,]+) of ([\d,]+)", printed)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        memory = max(line.get("peak_memory_resident", 0.0) for line in lines) * 1024
        accuracy = score(str(out / "epoch_0"), work / f"{name}_eval")
        rows.append(f"| {name} | {accuracy:.1%} | {trained[1]} of {trained[2]} | {memory:,.0f} MiB | {seconds:.0f} s |")
    print("| | exact match | trained parameters | peak memory of the process | time |\n|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
