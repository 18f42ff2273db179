"""Tiny models of every family with the demo's tokenizer, as folders."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models import tiny

BASE = Path(__file__).resolve().parents[2] / "torchtune_lite" / "assets" / "base"
VOCAB_SIZE = 1152
CHANGED: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 64},  # as llama.cpp takes it: the width of a head
    "gemma3": {"query_pre_attn_scalar": 64},
    "exaone4": {"num_hidden_layers": 64, "hidden_size": 128, "intermediate_size": 128},  # windows there take 64 layers
}
"""What llama.cpp's code decides, where tests/models/tiny.py has another value."""


def make(name: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> transformers.PreTrainedModel:
    """Make the model of transformers, with an embedding for the demo's tokenizer."""
    kind, arguments = tiny.TINY[name]
    monkeypatch.setitem(tiny.TINY, name, (kind, arguments | {"vocab_size": VOCAB_SIZE} | CHANGED.get(name, {}) | more))
    return tiny.make(name)


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Write a model's folder with the demo's tokenizer."""
    model.save_pretrained(folder)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(BASE / file, folder)
    return folder


def prompts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(300, VOCAB_SIZE, (1, length), generator=generator) for length in lengths]
