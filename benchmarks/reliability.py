"""Kills training runs at random instants and counts what is lost; fails each operation of a save; loses power in it.

    python benchmarks/reliability.py [--kills 200] [--seed 0]

The runs are real ones, `tune run` on the embedded model with validation, a checkpoint every second step and the last
two kept, each in a process that is forked from one that has imported everything. They are killed with SIGKILL, and then
resumed (or killed again) until they end. Prints a Markdown table. A checkpoint counts as acknowledged once the log
says `saved`. The digest is of parameters, moments, schedule, random states, position in the data, the written model's
bytes and every logged loss; controls show that it notices each of them.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the tests' sweeps

import torch
from safetensors.torch import load_file, save_file

import torchtune_lite.models.llama2
import torchtune_lite.training  # noqa: F401, before the fork
from tests.checkpoint import test_store_faults as faults
from tests.checkpoint.test_store_power_loss import PowerLoss
from torchtune_lite.checkpoint import published, verify
from torchtune_lite.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from torchtune_lite.cli.main import main as tune
from torchtune_lite.errors import CheckpointError

COMMON = """
tokenizer:
  _component_: torchtune_lite.models.llama2.llama2_tokenizer
  path: ${asset:base}/tokenizer.model
  max_seq_len: 64
  prompt_template: null
checkpointer: {_component_: torchtune_lite.training.FullModelHFCheckpointer, checkpoint_dir: "${asset:base}"}
dataset:
  _component_: torchtune_lite.datasets.instruct_dataset
  source: ${asset:addresses_train.jsonl}
  split: train[:22]
dataset_val:
  _component_: torchtune_lite.datasets.instruct_dataset
  source: ${asset:addresses_train.jsonl}
  split: train[22:26]
run_val_every_n_steps: 3
seed: 7
device: cpu
batch_size: 2
gradient_accumulation_steps: 2
epochs: 2
save_every_n_steps: 2
keep_last_n_checkpoints: 2
resume_from_checkpoint: auto
optimizer: {_component_: torch.optim.AdamW, lr: 2.0e-3}
lr_scheduler: {_component_: torchtune_lite.training.get_cosine_schedule_with_warmup, num_warmup_steps: 3}
"""
LORA = "model: {_component_: torchtune_lite.models.llama2.lora_llama2, lora_attn_modules: [q_proj, v_proj], "
KINDS = {  # recipe, and what its YAML has besides
    "full": ("full", "dtype: fp32\nmodel: {_component_: torchtune_lite.models.llama2.llama2}\n"),
    "LoRA": ("lora", f"dtype: fp32\n{LORA} lora_dropout: 0.2}}\n"),
    "LoRA, saved in the background": (
        "lora",
        f"dtype: fp32\nenable_async_checkpointing: True\n{LORA} lora_dropout: 0.2}}\n",
    ),
    "QLoRA": ("lora", f"dtype: bf16\nsave_adapter_weights_only: True\n{LORA} quantize_base: True}}\n"),
}
LAST = "epoch_1"
MOMENTS = ("any", "save", "after a save")


class Run:
    """One run in a folder of its own, started again after each kill."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True)
        recipe, text = KINDS[kind]
        self.output_dir, self.log = folder / "out", folder / "log"
        (folder / "config.yaml").write_text(f"output_dir: {self.output_dir}\n{COMMON}{text}")
        self.words = ["tune", "run", f"{recipe}_finetune_single_device", "--config", str(folder / "config.yaml")]
        self.log.touch()

    def start(self, *words: str) -> int:
        """Forks the process that trains."""
        child = os.fork()
        if child == 0:
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv, code = [*self.words, *words], 1
            try:
                tune()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        return child

    def finish(self, *words: str) -> float:
        """Runs to the end; returns the seconds it took."""
        start = time.perf_counter()
        if os.waitpid(self.start(*words), 0)[1] != 0:
            sys.exit(f"a run failed; the end of its log:\n{self.log.read_text()[-2000:]}")
        return time.perf_counter() - start

    def kill(self, rng: random.Random, seconds: float) -> bool:
        """Starts the run and kills it at any instant of `seconds`, in a save or just after one; False if it ended."""
        moment, saves = rng.choice(MOMENTS), self.num_saved() + rng.randint(0, 4)
        delay = rng.uniform(0, seconds) if moment == "any" else rng.choice((0, 0.001, 0.01)) * rng.random()
        child = self.start()
        reached: Callable[[], bool] = {
            "any": lambda: True,
            "save": lambda: self.num_saved() >= saves and any(self.output_dir.glob(".tmp-*")),
            "after a save": lambda: self.num_saved() > saves,
        }[moment]
        while not reached():
            if os.waitpid(child, os.WNOHANG)[0]:
                return False
            time.sleep(0.0002)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def saved(self) -> list[Path]:
        """Lists the checkpoints that the log said to be saved."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [Path(line.partition(" saved ")[2]) for line in lines if " saved /" in line]

    def num_saved(self) -> int:
        return self.log.read_bytes().count(b" saved /")

    def state(self) -> str:
        """Says what the run was at when it was killed, by what it left."""
        if any(self.output_dir.glob(".trash-*")):
            return "removal of an old one"
        if any(self.output_dir.glob(".tmp-*")):
            return "save"
        return "training" if published(self.output_dir) else "before the first save"

    def digest(self) -> dict[str, str]:
        """Hashes all that the end of a run is made of, by what it is."""
        last = self.output_dir / LAST
        trainer = json.loads((last / "resume/trainer.json").read_text())
        del trainer["progress"]["start_id"]  # random
        keys = ("step", "epoch", "loss", "lr", "grad_norm", "val_loss")
        rows = map(json.loads, (self.output_dir / "metrics.jsonl").read_text().splitlines())
        parts = {
            "losses": json.dumps([[row.get(key) for key in keys] for row in rows]).encode(),
            "schedule and position": json.dumps(trainer, sort_keys=True).encode(),
            "random states": (last / "resume/rng.json").read_bytes(),
            **{str(path.relative_to(last)): path.read_bytes() for path in last.rglob("*.safetensors")},
        }
        return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


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


def controls(work: Path, expected: dict[str, str]) -> list[str]:
    """Resumes LoRA from step 4 with one part of its state spoiled; lists the parts of which the digest took note."""
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


def kills(work: Path, count: int, seed: int) -> tuple[list[tuple[str, str]], dict[str, dict[str, str]]]:
    """Kills `count` times; gives rows of the table, and the digest of an uninterrupted run of each kind."""
    rng, tally, states, expected, seconds = random.Random(seed), Counter(), Counter(), {}, {}
    for kind in KINDS:
        whole = Run(work / f"{kind} whole", kind)
        seconds[kind] = whole.finish()
        expected[kind] = whole.digest()
    while tally["kills"] < count:
        kind = rng.choice(list(KINDS))
        run = Run(work / f"run_{tally['runs']}", kind)
        tally["runs"] += 1
        for _ in range(rng.randint(1, 3)):
            if not run.kill(rng, seconds[kind]):
                break
            tally["kills"] += 1
            states[run.state()] += 1
            there = published(run.output_dir)
            for folder in there:
                tally["checked"] += 1
                with suppress(CheckpointError):
                    verify(folder)
                    tally["valid"] += 1
            tally["acknowledged"] += bool(run.saved())
            tally["there"] += bool(run.saved()) and run.saved()[-1] in there
        run.finish()
        equal = run.digest() == expected[kind]
        tally["equal"] += equal
        print(f"{tally['kills']} kills, {tally['runs']} runs, {tally['equal']} equal", file=sys.stderr)
        if equal:
            shutil.rmtree(run.log.parent)
    where = ", ".join(f"{number} {state}" for state, number in states.most_common())
    return [
        (f"`kill -9` at random instants ({where})", str(tally["kills"])),
        (
            "published checkpoints that do not verify afterwards",
            f"{tally['checked'] - tally['valid']} of {tally['checked']}",
        ),
        ("newest acknowledged checkpoint lost", f"{tally['acknowledged'] - tally['there']} of {tally['acknowledged']}"),
        (f"runs resumed to the bit ({', '.join(KINDS)})", f"{tally['equal']} of {tally['runs']}"),
    ], expected


def sweeps(work: Path) -> list[tuple[str, str]]:
    """Does what the tests do, and counts: an AssertionError ends it."""
    operations = faults.num_operations(work / "count")
    for name, how in {
        "ENOSPC": lambda folder, at: faults.run_and_fail(folder, at, 28),
        "EIO": lambda folder, at: faults.run_and_fail(folder, at, 5),
        "kill": faults.run_and_die,
    }.items():
        (work / name).mkdir()
        faults.sweep(work / name, how)
    images = len(PowerLoss(work / "power").images)
    return [
        ("each operation of three saves fails (ENOSPC, EIO) or kills: something lost", f"0 of {3 * operations}"),
        ("disk images after a power loss: something lost", f"0 of {images}"),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reliability-") as name, redirect_stdout(sys.stderr):
        work = Path(name)
        rows, expected = kills(work, args.kills, args.seed)
        noticed = controls(work, expected["LoRA"])
        rows += sweeps(work)
    names = [name for name in CONTROLS if name != "nothing"]
    rows.append((f"controls: spoiled {', '.join(names)}; the digest notices", f"{len(noticed)} of {len(names)}"))
    print("| what | count |\n|---|---|")
    print("\n".join(f"| {what} | {number} |" for what, number in rows))
    print(f"\n{time.perf_counter() - start:.0f} s, one thread, torch {torch.__version__}")
    if noticed != names:
        sys.exit(f"the controls noticed {noticed}")


if __name__ == "__main__":
    main()
