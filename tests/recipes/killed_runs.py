"""Training runs that are killed at random instants and resumed, and a count of their losses.

They are real ones, `tune run` on the embedded model with validation, a checkpoint every second step and the last two
kept, each in a process that is forked from one that has imported everything and used no thread. A checkpoint counts as
acknowledged once the log says `saved`. The digest is of parameters, moments, schedule, random states, position in the
data, the written model's bytes and every logged loss.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torchtune_lite.models.llama2

import torchtune_lite.training  # noqa: F401, before the fork, as torch._dynamo
from torchtune_lite.checkpoint import published, verify
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
        """Fork the process that trains."""
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
        """Run to the end; return the seconds it took."""
        start = time.perf_counter()
        if os.waitpid(self.start(*words), 0)[1] != 0:
            sys.exit(f"a run failed; the end of its log:\n{self.log.read_text()[-2000:]}")
        return time.perf_counter() - start

    def kill(self, rng: random.Random, seconds: float) -> bool:
        """Start the run and kill it within `seconds`, in a save or just after one; return False if it ended."""
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
        return self.strike(child, rng)

    def strike(self, child: int, rng: random.Random) -> bool:
        """Kill a run; return False if it ended before."""
        os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def saved(self) -> list[Path]:
        """List the checkpoints that the log calls saved."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [Path(line.partition(" saved ")[2]) for line in lines if " saved /" in line]

    def num_saved(self) -> int:
        return self.log.read_bytes().count(b" saved /")

    def state(self) -> str:
        """Return the phase in which the run was killed, judged by the folders it left."""
        if any(self.output_dir.glob(".trash-*")):
            return "while an old one was removed"
        if any(self.output_dir.glob(".tmp-*")):
            return "in a save"
        return "in training" if published(self.output_dir) else "before the first save"

    def digest(self) -> dict[str, str]:
        """Hash every part of a run's final state, by name."""
        last = self.output_dir / LAST
        trainer = json.loads((last / "resume/trainer.json").read_text())
        del trainer["progress"]["start_id"], trainer["progress"]["start_date"]  # random; of the day
        keys = ("step", "epoch", "loss", "lr", "grad_norm", "val_loss")
        rows = map(json.loads, (self.output_dir / "metrics.jsonl").read_text().splitlines())
        parts = {
            "losses": json.dumps([[row.get(key) for key in keys] for row in rows]).encode(),
            "schedule and position": json.dumps(trainer, sort_keys=True).encode(),
            "random states": (last / "resume/rng.json").read_bytes(),
            **{str(path.relative_to(last)): path.read_bytes() for path in last.rglob("*.safetensors")},
        }
        return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


class Pair(Run):
    """A run in two processes that share the weights, with their launcher; of these three some are killed."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder, kind)
        self.words[2:2] = ["--nproc_per_node", "2"]

    def strike(self, child: int, rng: random.Random) -> bool:
        """Kill the launcher, a process of it or all; return when all have ended, False if all had before."""
        workers = children(child)
        victims = rng.choice(([child], [child, *workers], *([worker] for worker in workers)))
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        while any(map(is_running, workers)):  # those whose launcher was killed stop with a checkpoint
            time.sleep(0.01)
        return status != 0


def children(pid: int) -> list[int]:
    """List the processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Return whether a process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kills(
    work: Path, count: int, seed: int, kinds: Collection[str] = tuple(KINDS), make: type[Run] = Run
) -> tuple[list[tuple[str, str]], dict[str, Run]]:
    """Kill runs `count` times; return rows of a table, and the uninterrupted run of each kind."""
    rng, tally, states = random.Random(seed), Counter(), Counter()
    whole = {kind: make(work / f"{kind} whole", kind) for kind in kinds}
    seconds = {kind: run.finish() for kind, run in whole.items()}
    while tally["kills"] < count:
        kind = rng.choice(list(kinds))
        run = make(work / f"run_{tally['runs']}", kind)
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
        equal = run.digest() == whole[kind].digest()
        tally["equal"] += equal
        print(f"{tally['kills']} kills, {tally['runs']} runs, {tally['equal']} equal", file=sys.stderr)
        if equal:
            shutil.rmtree(run.log.parent)
    of = " of one or more of two processes and their launcher" if make is Pair else ""
    where = ", ".join(f"{number} {state}" for state, number in states.most_common())
    return [
        (f"`kill -9`{of} at random instants ({where})", str(tally["kills"])),
        (
            "published checkpoints that do not verify afterwards",
            f"{tally['checked'] - tally['valid']} of {tally['checked']}",
        ),
        ("newest acknowledged checkpoint lost", f"{tally['acknowledged'] - tally['there']} of {tally['acknowledged']}"),
        (f"runs resumed bit for bit ({', '.join(kinds)})", f"{tally['equal']} of {tally['runs']}"),
    ], whole
