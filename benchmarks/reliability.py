"""Kill training runs at random instants, break saves and damage files, and count the losses.

    python benchmarks/reliability.py [--kills 200] [--pair-kills 40] [--seed 0] [--quick]

Each operation of a save fails or kills; power is lost at any moment; every file of a checkpoint is damaged in every
way; the tests that docs/reliability.md names are run. The sweeps are those of the tests. The result is a Markdown
table. `--pair-kills` are those of runs in two processes. `--quick` kills 6 times, and a pair twice. Negative controls
show that the digest of a run covers each part of its state.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
sys.path.insert(0, os.environ["PYTHONPATH"])  # for the tests' sweeps

import torch
from safetensors.torch import load_file, save_file

from tests import fault_table
from tests.checkpoint import corruption, memory
from tests.checkpoint import test_store_faults as faults
from tests.checkpoint.test_store_power_loss import PowerLoss
from tests.recipes.killed_runs import Pair, Run, kills
from torchtune_lite.checkpoint import FullModelHFCheckpointer, published
from torchtune_lite.checkpoint.store.manifest import MANIFEST, read_manifest, write_manifest
from torchtune_lite.models import llama2

NUM_LAYERS = 6  # of the base whose save is measured: 226 MB in bf16
KINDS = {"full": None, "LoRA": memory.ADAPTERS, "QLoRA": memory.ADAPTERS | {"quantize_base": True}}


def drop_moments(folder: Path) -> None:
    path = folder / "resume/optimizer.safetensors"
    save_file({n: torch.zeros_like(t) if "exp_avg" in n else t for n, t in load_file(path).items()}, path)


def drop_random_state(folder: Path) -> None:
    path = folder / "resume/rng.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": torch.get_rng_state().tolist()}))


def shift_position(folder: Path) -> None:
    path = folder / "resume/trainer.json"
    trainer = json.loads(path.read_text())
    trainer["progress"]["global_step"] += 1
    path.write_text(json.dumps(trainer))


CONTROLS = {
    "nothing": lambda folder: None,
    "the moments": drop_moments,
    "the random state": drop_random_state,
    "the position": shift_position,
}


def controls(work: Path, whole: Run) -> list[str]:
    """Resume LoRA from step 4 with one part of its state altered; return the parts that changed the digest."""
    expected = whole.digest()
    noticed = []
    for name, spoil in CONTROLS.items():
        run = Run(work / f"without {name}", "LoRA")
        run.finish("keep_last_n_checkpoints=null")
        for folder in published(run.output_dir):
            if folder.name not in ("step_2", "step_4"):
                shutil.rmtree(folder)
        folder = run.output_dir / "step_4"
        manifest = read_manifest(folder)
        spoil(folder)
        (folder / MANIFEST).unlink()
        write_manifest(folder, run_id=manifest.run_id, step=manifest.step)
        run.finish()
        if run.digest() != expected:
            noticed.append(name)
    return noticed


def sweeps(work: Path) -> list[tuple[str, str]]:
    """Run the tests' sweeps and count their cases; raise AssertionError at the first loss."""
    operations = faults.num_operations(work / "count")
    for name, run in {
        "ENOSPC": lambda folder, at: faults.run_and_fail(folder, at, 28),
        "EIO": lambda folder, at: faults.run_and_fail(folder, at, 5),
        "kill": faults.run_and_die,
    }.items():
        (work / name).mkdir()
        faults.sweep(work / name, run)
    images = len(PowerLoss(work / "power").images)
    return [
        (
            "failures (ENOSPC, EIO) or kills at each operation of three saves that lost a checkpoint",
            f"0 of {3 * operations}",
        ),
        ("disk images after a power loss that lost a checkpoint", f"0 of {images}"),
    ]


def damages(whole: Run) -> tuple[str, str]:
    """Damage each file of the last checkpoint of a run; raise AssertionError if it goes undetected."""
    older, newer = sorted(published(whole.output_dir), key=lambda folder: read_manifest(folder).step)[-2:]
    names = corruption.files(newer)
    count = sum(corruption.sweep(newer, older, name) for name in names)
    return f"damage to one of the {len(names)} files of a checkpoint: detected and named", f"{count} of {count}"


def save_memory(folder: Path, kind: str) -> tuple[str, str]:
    """Measure the memory that a verified save takes beside the model, in a process of its own."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, json.dumps(save_peak(folder, kind)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        peak, size = json.loads(pipe.read())
    assert os.waitpid(child, 0)[1] == 0
    times = f"{peak / size:.2f} × the file, {peak / (2 * memory.NUM_LARGEST):.1f} × its largest tensor"
    return f"memory of a save beside the model ({kind}, bf16, {size / 1e6:.0f} MB)", f"{peak / 1e6:.0f} MB: {times}"


def save_peak(folder: Path, kind: str) -> tuple[int, int]:
    """Return the peak of a save and the size of its model, in bytes."""
    memory.give_back_freed()
    checkpointer = FullModelHFCheckpointer(memory.write_base(folder, torch.bfloat16, NUM_LAYERS))
    with torch.device("meta"):
        args = checkpointer.decoder_args
        model = llama2.lora_llama2(**args, **KINDS[kind]) if KINDS[kind] else llama2.llama2(**args)
    checkpointer.load(model, device="cpu", dtype=torch.bfloat16)
    checkpointer.save(folder / "step_1", model, verify=True)  # imports, tables
    peak = memory.peak_bytes(lambda: checkpointer.save(folder / "step_2", model, verify=True))
    return peak, (folder / "step_2" / "model.safetensors").stat().st_size


def faults_handled() -> list[tuple[str, str]]:
    """Run the tests that docs/reliability.md names."""
    rows = fault_table.rows()
    shown = fault_table.shown(rows)
    missing = [code for code, _ in rows if code not in shown]
    print(f"not shown: {', '.join(missing) or 'none'}", file=sys.stderr)
    first = [code for code, _ in rows if fault_table.is_p0(code)]
    return [
        ("P0 rows of docs/reliability.md whose tests pass", f"{len([c for c in first if c in shown])} of {len(first)}"),
        ("all rows of it", f"{len(shown)} of {len(rows)}"),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pair-kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reliability-") as name, redirect_stdout(sys.stderr):
        work = Path(name)
        rows, whole = kills(work, 6 if args.quick else args.kills, args.seed)
        rows += kills(work / "pairs", 2 if args.quick else args.pair_kills, args.seed, ("full", "LoRA"), Pair)[0]
        noticed = controls(work, whole["LoRA"])
        rows += [*sweeps(work), damages(whole["LoRA"])]
        rows += [save_memory(work / f"wide {kind}", kind) for kind in KINDS]
        rows += faults_handled()
    names = [name for name in CONTROLS if name != "nothing"]
    rows.append((f"negative controls (altered {', '.join(names)}): detected", f"{len(noticed)} of {len(names)}"))
    print("| experiment | count |\n|---|---|")
    print("\n".join(f"| {experiment} | {number} |" for experiment, number in rows))
    print(f"\n{time.perf_counter() - start:.0f} s, one thread, torch {torch.__version__}")
    if noticed != names:
        sys.exit(f"only these controls were detected: {noticed}")


if __name__ == "__main__":
    main()
