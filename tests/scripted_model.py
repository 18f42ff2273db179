"""A model that says what a test wants: after each token the one that a script names, whatever stood before."""

import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from tests.demo_run import BASE

MAX_SEQ_LEN = 2048


def make(folder: Path, script: Mapping[str, str]) -> None:
    """Writes the folder of a model without a chat template.

    After a prompt that ends with a key of `script` it says the text, token by token, and ends; a text that comes back
    to a token of its own goes round and round.
    """
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": MAX_SEQ_LEN}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    embedding = torch.randn(weights["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0))
    head = torch.zeros_like(embedding)
    for token, following in _followers(folder / "tokenizer.model", script).items():
        head[following] += embedding[token]
    changed = {"lm_head.weight": head, "model.embed_tokens.weight": embedding}
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # so that nothing is added to the last token's own
            changed[name] = torch.zeros_like(weight)
        elif name == "model.norm.weight":
            changed[name] = torch.ones_like(weight)
    weights |= {name: weight.to(torch.bfloat16).contiguous() for name, weight in changed.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _followers(path: Path, script: Mapping[str, str]) -> dict[int, int]:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    start = len(tokenizer.encode("\n"))  # a text gets a space, which the bytes of a line end keep apart
    found: dict[int, int] = {}
    for key, text in script.items():
        said = [*tokenizer.encode(f"\n{text}")[start:], tokenizer.eos_id()]
        for asked in (key, f"x {key}", f"x{key}"):
            found.setdefault(tokenizer.encode(asked)[-1], said[0])
        for token, following in pairwise(said):
            found.setdefault(token, following)
    return found
