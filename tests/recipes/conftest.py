"""A tiny random Llama, a tokenizer and data, for running the recipes as a user runs them."""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

from tests.free_port import free_port

WORDS = [
    "red",
    "green",
    "blue",
    "big",
    "small",
    "cat",
    "dog",
    "bird",
    "fish",
    "tree",
    "house",
    "river",
    "runs",
    "sleeps",
    "sings",
    "jumps",
    "under",
    "over",
    "near",
]


@dataclass(frozen=True)
class Tiny:
    """A checkpoint folder in HF layout with its tokenizer, and data sets of `input` and `output`."""

    checkpoint: Path
    train: Path
    val: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)
    rows = []
    for _ in range(37):
        words = rng.choices(WORDS, k=rng.randint(3, 9))
        rows.append({"input": " ".join(words), "output": " ".join(sorted(words))})
    (folder / "text.txt").write_text("\n".join(f"{r['input']} {r['output']}" for r in rows))
    for name, part in (("train", rows[:29]), ("val", rows[29:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    checkpoint = folder / "base"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=128,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.2,  # far from zero, so that a wrong sum shows
        )
    )
    model.save_pretrained(checkpoint)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(checkpoint / "tokenizer"),
        vocab_size=100,
        model_type="bpe",
        normalization_rule_name="identity",  # as Llama's
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return Tiny(checkpoint, folder / "train.jsonl", folder / "val.jsonl")


@pytest.fixture(scope="session")
def tune_server() -> Iterator[subprocess.Popen[str]]:
    """The process that the runs are forked from."""
    server = [sys.executable, str(Path(__file__).with_name("tune_server.py"))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(server, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def ranks(size: int, port: int) -> list[dict[str, str]]:
    """The variables of each of `size` processes that torchrun starts on one machine."""
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    common["MASTER_PORT"] = str(port)
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


@pytest.fixture(scope="session")
def tune_in(tune_server: subprocess.Popen[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `tune` in a process of its own, or in several as torchrun does, from `cwd`, `without` some packages.

    Without matplotlib, unless told otherwise: the picture of a run takes a third of its time.
    """

    def run(
        cwd: Path, *args: object, check: bool = True, without: Sequence[str] = ("matplotlib",), processes: int = 1
    ) -> subprocess.CompletedProcess[str]:
        words = list(map(str, args))
        with tempfile.TemporaryDirectory() as folder, free_port() as port:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {"args": words, "cwd": str(cwd), "out": str(out), "err": str(err), "without": list(without)}
            request["env"] = ranks(processes, port) if processes > 1 else [{}]
            print(json.dumps(request), file=tune_server.stdin, flush=True)
            codes = json.loads(tune_server.stdout.readline())
            code = min(filter(None, codes), default=0)  # of several, not that of those that have lost another
            result = subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture
def tune(tune_in, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `tune` in a process of its own, from a folder of its own."""
    return partial(tune_in, tmp_path)


def common_keys(tiny: Tiny, output_dir: Path) -> str:
    """The YAML shared by the configs of both fine-tuning recipes."""
    return f"""
output_dir: {output_dir}
tokenizer:
  _component_: torchtune_lite.models.llama2.llama2_tokenizer
  path: {tiny.checkpoint}/tokenizer.model
  prompt_template: null
checkpointer:
  _component_: torchtune_lite.training.FullModelHFCheckpointer
  checkpoint_dir: {tiny.checkpoint}
dataset:
  _component_: torchtune_lite.datasets.instruct_dataset
  source: {tiny.train}
seed: 7
device: cpu
dtype: fp32
"""


def metrics(output_dir: Path, name: str) -> list[float]:
    """Read the values of one metric, in order."""
    lines = map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


PROBE = """
import os
import resource
import signal

from torchtune_lite import checkpoint
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.modules.loss import LinearCrossEntropyLoss


class Probe(LinearCrossEntropyLoss):
    # At its calls `at`, counted from 1, sends signals to its own process, or `in_save` in the next save, and multiplies
    # the loss; from call full[0] on and before full[1], no file can grow beyond 10 kB, as on a full disk.
    def __init__(self, at, send=(), factor=1.0, full=(0, 0), keep_rng=False, in_save=False):
        super().__init__()
        self.calls, self.at, self.send, self.factor, self.full = 0, at, send, factor, full
        self.in_save = in_save
        if keep_rng:
            checkpoint.set_rng_state = lambda state: None

    def forward(self, output, hidden, labels, rows=None, token_losses=None):
        self.calls += 1
        if self.calls in self.full:
            limit = 10_000 if self.calls == self.full[0] else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        loss = super().forward(output, hidden, labels, rows, token_losses)
        if self.calls not in self.at:
            return loss
        if self.in_save:
            self.rename, disk.rename = disk.rename, self.send_and_rename
        else:
            self.send_all()
        return loss * float(self.factor)


    def send_all(self):
        for name in self.send:
            os.kill(os.getpid(), getattr(signal, name))

    def send_and_rename(self, path, new):
        disk.rename = self.rename
        self.send_all()
        disk.rename(path, new)


class Signalled:
    # A data set that is interrupted while it is made.
    def __init__(self, tokenizer, send):
        os.kill(os.getpid(), getattr(signal, send))


class FewLabels:
    # 32 samples; the 12 of the second step and the first 4 of the third have no label.
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self):
        return 32

    def __getitem__(self, index):
        tokens = [3 + (7 * index + i) % 90 for i in range(9)]
        return {"tokens": tokens, "labels": [-100] * 9 if 12 <= index < 28 else [*tokens[1:], -100]}
"""


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., list[str]]:
    """Return the overrides that inject signals, or a factor such as nan, into the loss of a run."""
    (tmp_path / "probe.py").write_text(PROBE)

    def overrides(*at: int, **arguments: object) -> list[str]:
        words = [f"loss.{name}={value}" for name, value in {"at": list(at), **arguments}.items()]
        return ["loss={_component_: probe.Probe}", *words]

    return overrides


def digest(output_dir: Path, folder: str) -> dict[str, object]:
    """Everything that decides how a run continues from its checkpoint `folder`, and every number it has logged."""
    found: dict[str, object] = {}
    for path in [*(output_dir / folder).rglob("*.safetensors"), output_dir / folder / "resume" / "rng.json"]:
        found[path.relative_to(output_dir).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    trainer = json.loads((output_dir / folder / "resume" / "trainer.json").read_text())
    found |= {key: trainer[key] for key in ("progress", "optimizer", "lr_scheduler")}
    del found["progress"]["start_id"], found["progress"]["start_date"]
    rows = map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
    measured = ("tokens_per_second", "label_tokens_per_second", "data_wait", "peak_memory")
    return found | {
        "metrics": [{name: value for name, value in row.items() if not name.startswith(measured)} for row in rows]
    }
