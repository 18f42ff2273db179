"""Writes what the embedded base model starts from, and what is kept of it after pretraining.

    python -m torchtune_lite.assets.make_base start --out work/demo_base
    tune run full_finetune_single_device --config demo/base
    python -m torchtune_lite.assets.make_base keep work/demo_base/run/epoch_0 --out torchtune_lite/assets/base

`start` writes the corpus (`corpus.py`) as `questions.jsonl` and `texts.jsonl`, and `start/`, a checkpoint in HF layout
with random weights. `keep` copies the trained model's files, its weights in bfloat16.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

from torchtune_lite.assets.corpus import question, text
from torchtune_lite.models import FAMILIES
from torchtune_lite.models.families import hf_config
from torchtune_lite.models.llama2 import llama2
from torchtune_lite.modules import DecoderConfig

TOKENIZER = Path(__file__).with_name("base") / "tokenizer.model"
SIZES = dict(num_layers=4, num_heads=4, num_kv_heads=4, embed_dim=128, intermediate_dim=256, max_seq_len=256)


def write_corpus(folder: Path, count: int, rng: Random) -> None:
    """Write `questions.jsonl`, `count` rows of `input` and `output`, and `texts.jsonl`, a sixth as many of `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = (dict(zip(("input", "output"), question(rng), strict=True)) for _ in range(count))
    texts = ({"text": "\n".join(text(rng) for _ in range(3))} for _ in range(count // 6))
    for name, rows in (("questions", questions), ("texts", texts)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_start(folder: Path, tokenizer: SentencePieceProcessor, seed: int) -> None:
    """Write a checkpoint of random weights: deviation 0.06, less before each residual sum as in GPT-2."""
    family = FAMILIES["llama"]
    config = DecoderConfig(vocab_size=tokenizer.vocab_size(), **SIZES)
    model = llama2(**vars(config))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        residual = name.endswith(("output_proj.weight", "w2.weight"))
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.06 / math.sqrt(2 * config.num_layers) if residual else 0.06)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {family.to_hf(name): tensor for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    special = {"bos_token_id": tokenizer.bos_id(), "eos_token_id": tokenizer.eos_id(), "pad_token_id": None}
    described = hf_config(family, config) | special | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    pieces = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer_config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **pieces}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    shutil.copy(TOKENIZER, folder)


def keep(trained: Path, folder: Path) -> None:
    """Copy config, tokenizer and weights of `trained`, the weights in bfloat16."""
    config = json.loads((trained / "config.json").read_text()) | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(trained / "tokenizer_config.json", folder)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(trained / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="write the corpus and the random model")
    start.add_argument("--questions", type=int, default=168_000, help="questions in the corpus")
    start.add_argument("--seed", type=int, default=0)
    kept = commands.add_parser("keep", help="copy a trained model in bfloat16")
    kept.add_argument("trained", type=Path, help="checkpoint folder")
    for command in (start, kept):
        command.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    if args.command == "keep":
        keep(args.trained, args.out)
    else:
        tokenizer = SentencePieceProcessor(str(TOKENIZER))
        write_start(args.out / "start", tokenizer, args.seed)
        write_corpus(args.out, args.questions, Random(args.seed))


if __name__ == "__main__":
    main()
