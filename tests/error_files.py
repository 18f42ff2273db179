"""A run that would work, and the ways to spoil its files, for the bad inputs of `error_cases`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torchtune_lite import catalog

BASE = catalog.folder("recipes").parent / "torchtune_lite" / "assets" / "base"
CONFIG = """\
recipe: lora_finetune_single_device
output_dir: out
model:
  _component_: torchtune_lite.models.llama2.lora_llama2
  lora_attn_modules: [q_proj]
  lora_rank: 2
tokenizer:
  _component_: torchtune_lite.models.llama2.llama2_tokenizer
  path: ${checkpointer.checkpoint_dir}/tokenizer.model
  prompt_template: null
checkpointer:
  _component_: torchtune_lite.training.FullModelHFCheckpointer
  checkpoint_dir: base
dataset:
  _component_: torchtune_lite.datasets.instruct_dataset
  source: train.jsonl
optimizer:
  _component_: torch.optim.AdamW
  lr: 1e-3
batch_size: 1
epochs: 1
device: cpu
dtype: fp32
seed: 0
"""
ROW = {"input": "a question", "output": "an answer"}
CHECK = "validate my.yaml"
GENERATE = "run generate --config generation model_dir=base device=cpu tokenizer.prompt_template=null"
EVALUATE = "run exact_match_eval --config demo/address_eval source=train.jsonl output_dir=new device=cpu"
RUN = "run lora_finetune_single_device --config my.yaml"


@dataclass(frozen=True)
class Case:
    """`files` are written over those of a run that works; `prepare` does to them what a text cannot say."""

    given: str
    command: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None
    trained: bool = False  # out/ is that of a run of one epoch
    code: int | None = None  # None: that of the section


def lay_out(case: Case, folder: Path, trained: Path) -> None:
    """Writes what lies in the working directory of a case; `trained` is the output_dir of a run."""
    shutil.copytree(BASE, folder / "base")
    if case.trained:
        shutil.copytree(trained, folder / "out")
    files = {"my.yaml": CONFIG, "train.jsonl": json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n"} | case.files
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    case.prepare(folder)


def config(old: str, new: str) -> dict[str, str]:
    """Gives my.yaml with a part of it replaced."""
    assert old in CONFIG
    return {"my.yaml": CONFIG.replace(old, new)}


def rows(*lines: str | bytes | dict | list) -> dict[str, bytes]:
    """Gives train.jsonl with these lines."""
    texts = [json.dumps(line) if isinstance(line, dict | list) else line for line in lines]
    return {"train.jsonl": b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts)}


def chat(messages: object, **columns: object) -> dict[str, str | bytes]:
    """Gives train.jsonl with one conversation, and columns beside it, and my.yaml for it."""
    if isinstance(messages, list):
        turns = [
            turn if isinstance(turn, dict) else dict(zip(("role", "content"), turn, strict=True)) for turn in messages
        ]
        messages = turns
    keys = "chat_dataset\n  conversation_column: messages\n  conversation_style: openai"
    return config("instruct_dataset", keys) | rows({"messages": messages, **columns})


def hf_config(**changes: object) -> dict[str, str]:
    """Gives the checkpoint's config.json with other values."""
    return {"base/config.json": json.dumps(json.loads((BASE / "config.json").read_text()) | changes)}


def adapter_config(**changes: object) -> Callable[[Path], object]:
    """Makes the trained adapter's config one with other values."""

    def prepare(folder: Path) -> None:
        path = folder / "out/epoch_0/adapter/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return prepare


def own_adapter(**changes: object) -> Callable[[Path], object]:
    """Puts the trained adapter into a folder of its own, my_adapter, and makes its config one with other values."""

    def prepare(folder: Path) -> None:
        adapter_config(**changes)(folder)
        (folder / "out/epoch_0/adapter").rename(folder / "my_adapter")

    return prepare


def index(**weight_map: str) -> Callable[[Path], object]:
    """Makes a checkpoint in shards of which one weight each is named."""

    def prepare(folder: Path) -> None:
        (folder / "base/model.safetensors").rename(folder / "base/model-00001-of-00002.safetensors")
        text = json.dumps({"weight_map": weight_map or {"a": "model-00001-of-00002.safetensors"}})
        (folder / "base/model.safetensors.index.json").write_text(text)

    return prepare


def truncated(name: str, size: int) -> Callable[[Path], object]:
    """Cuts a file off."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def changed_weights(change: Callable) -> Callable[[Path], object]:
    """Rewrites the model's weights after a change to the dictionary of them."""

    def prepare(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "base/model.safetensors")
        change(weights)
        save_file(weights, folder / "base/model.safetensors", {"format": "pt"})

    return prepare


class Payload:
    """An object whose unpickling makes a file."""

    def __reduce__(self) -> tuple:
        return (open, ("executed", "w"))


def pickled(folder: Path) -> None:
    """Puts a pickle in the place of the weights."""
    import torch

    (folder / "base/model.safetensors").unlink()
    torch.save({"a": Payload()}, folder / "base/pytorch_model.bin")


def other_format(folder: Path) -> None:
    """Makes the manifest of the trained checkpoint one of a later version."""
    path = folder / "out/epoch_0/MANIFEST.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))


def flipped(name: str) -> Callable[[Path], object]:
    """Flips a bit in the middle of a file."""

    def prepare(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return prepare
