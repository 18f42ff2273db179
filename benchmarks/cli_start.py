"""Print the CPU time that `tune --help` and `tune ls` need beyond Python's own start, beside torchtune's, and what an
optimizer's first step costs with torch's compiler, which torch loads for it, and without, as under `tune run`.

    python benchmarks/cli_start.py [--peer /path/to/python-with-torchtune] [--runs 7]

CPU time is user and system time of the child process, the least of the runs.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version

START = {
    "torchtune_lite": "import sys; from torchtune_lite.cli.main import main; sys.argv = ['tune', {word!r}]; main()",
    "torchtune": "import sys; from torchtune._cli.tune import main; sys.argv = ['tune', {word!r}]; main()",
}

LAZY = "from torchtune_lite.cli.lazy_compiler import make_compiler_lazy; make_compiler_lazy(); "
STEP = """import resource, torch
layer = torch.nn.Linear(2, 2)
layer(torch.ones(2)).sum().backward()
torch.optim.AdamW(layer.parameters()).step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"""


def cpu_seconds(python: str, code: str, runs: int) -> float:
    """Return the least CPU time that `python -c code` takes, in seconds."""
    times = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([python, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    """Measure and print one row per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that can import torchtune")
    parser.add_argument("--runs", type=int, default=7, help="runs of each, of which the fastest counts")
    args = parser.parse_args()

    pythons = {"torchtune_lite": sys.executable, **({"torchtune": args.peer} if args.peer else {})}
    print(f"Python {platform.python_version()}, torch {version('torch')}, {os.cpu_count()} CPUs, {platform.platform()}")
    print(f"\n{'command':<12}" + "".join(f"{name:>18}" for name in pythons))
    for word in ("--help", "ls"):
        seconds = [
            cpu_seconds(python, START[name].format(word=word), args.runs) - cpu_seconds(python, "pass", args.runs)
            for name, python in pythons.items()
        ]
        print(f"tune {word:<7}" + "".join(f"{each:>16.3f} s" for each in seconds))
    print()
    for name, code in (("with the compiler", STEP), ("without", LAZY + STEP)):
        memory = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        seconds = cpu_seconds(sys.executable, code, args.runs)
        print(f"import torch and a step of AdamW, {name}: {seconds:.2f} s, {memory} MB")


if __name__ == "__main__":
    main()
