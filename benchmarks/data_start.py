"""Measure the start of a run on a large JSONL file, ours beside the package `datasets`: first batch and memory.

    python benchmarks/data_start.py --peer PYTHON [--mb 256]

PYTHON is an interpreter with `datasets` and sentencepiece; without it only ours is measured. The file is generated,
questions and answers of random words, and is in the page cache. Each runs in a process of its own, as a user would have
it: ours checks rows, the peer converts the file to Arrow in a cache, and is measured again with that cache. Printed are
the seconds from after the imports to the first batch of 4 shuffled rows, tokenised by the same model; how many rows a
second are then read in that order; and the memory beyond what the imports took: at its peak, and after all rows what is
no file that the system can drop. Linux only.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BATCH_SIZE, ROWS = 4, 20_000
ASSETS = Path(__file__).resolve().parent.parent / "torchtune_lite" / "assets"


def write_rows(path: Path, num_bytes: int) -> int:
    """Write rows of about 800 bytes; return how many."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    rows = written = 0
    with path.open("w") as file:
        while written < num_bytes:
            question, answer = (" ".join(draw.choices(words, k=draw.randint(20, 100))) for _ in range(2))
            written += file.write(json.dumps({"input": question, "output": answer}) + "\n")
            rows += 1
    return rows


def ours(path: str, tokenizer: str) -> Iterator[object]:
    """Import, return a first batch, then row after row, by torchtune_lite."""
    from torchtune_lite.data import Batches, SentencePieceTokenizer
    from torchtune_lite.datasets import instruct_dataset

    yield None
    dataset = instruct_dataset(SentencePieceTokenizer(tokenizer, max_seq_len=2048), path)
    yield next(Batches(dataset, BATCH_SIZE, seed=0, shuffle=True, pad_id=0).epoch(0))
    yield from (dataset.rows[i] for i in random.Random(0).sample(range(len(dataset)), ROWS))


def peer(path: str, tokenizer: str) -> Iterator[object]:
    """Do the same by `datasets`; its batch is lists."""
    from datasets import load_dataset
    from sentencepiece import SentencePieceProcessor

    yield None
    model = SentencePieceProcessor(model_file=tokenizer)
    data = load_dataset("json", data_files=path, split="train")
    order = random.Random(0).sample(range(len(data)), ROWS)
    yield [model.encode(data[i]["input"]) + model.encode(data[i]["output"]) for i in order[:BATCH_SIZE]]
    yield from (data[i] for i in order)


def memory() -> dict[str, float]:
    """Read the process's memory in MB: VmRSS now, VmHWM at its peak, RssAnon of it no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) / 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }


def measure(steps: Iterator[object]) -> dict[str, float]:
    """Run one and return its figures."""
    next(steps)  # the imports
    before, start = memory(), time.perf_counter()
    next(steps)
    first = time.perf_counter()
    for _ in steps:
        pass
    end, after = time.perf_counter(), memory()
    return {
        "first batch s": first - start,
        "rows/s then": ROWS / (end - first),
        "peak MB": after["VmHWM"] - before["VmRSS"],
        "no file MB": after["RssAnon"] - before["RssAnon"],
    }


def main() -> None:
    """Print one row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that can import datasets and sentencepiece")
    parser.add_argument("--mb", type=int, default=256, help="size of the file")
    parser.add_argument("--measure", nargs=3, metavar=("WHO", "FILE", "TOKENIZER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        who, path, tokenizer = args.measure
        print(json.dumps(measure({"ours": ours, "peer": peer}[who](path, tokenizer))))
        return
    [tokenizer] = ASSETS.rglob("tokenizer.model")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = write_rows(path, args.mb * 2**20)
        print(f"{path.stat().st_size / 2**20:,.0f} MB, {rows:,} rows; {os.cpu_count()} CPUs\n")
        runs = [("torchtune_lite", sys.executable, "ours")]
        if args.peer:
            runs += [("datasets, first run", args.peer, "peer"), ("datasets, cached", args.peer, "peer")]
        env = os.environ | {"HF_HOME": str(Path(folder) / "cache"), "HF_HUB_OFFLINE": "1"}
        for i, (name, python, who) in enumerate(runs):
            command = [python, __file__, "--measure", who, str(path), str(tokenizer)]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr}")
            figures = json.loads(done.stdout.splitlines()[-1])
            if i == 0:
                print(f"{'':<22}" + "".join(f"{key:>15}" for key in figures))
            print(f"{name:<22}" + "".join(f"{value:>15,.1f}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    main()
