"""A meter for the host memory that a function takes, and a base model wide enough to show it."""

import ctypes
import gc
import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.training import peak_memory, reset_peak_memory

ADAPTERS = {"lora_attn_modules": ["q_proj"], "apply_lora_to_mlp": True}
NUM_LARGEST = 6000 * 1024
"""Weights in the largest tensor of the base: the embedding."""


def write_base(folder: Path, dtype: torch.dtype, num_layers: int = 2) -> Path:
    """Write a base of 12 M weights and 17 M in each layer."""
    config = LlamaConfig(
        vocab_size=6000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    weights = {n: Weight(dtype, s, lambda s=s: (0.02 * torch.randn(s)).to(dtype)) for n, s in shapes.items()}
    write_safetensors(folder / "model.safetensors", weights)
    return folder


def give_back_freed() -> None:
    """Let malloc return freed tensors from 1 MiB on to the system; call it before the unmeasured part."""
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def peak_bytes(function: Callable[[], object]) -> int:
    """Run a function and return the peak of the bytes it takes, mapped files included; needs Linux's /proc."""

    def peak() -> float:
        return peak_memory(torch.device("cpu"))["peak_memory_resident"] * 1024**3

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory(torch.device("cpu"))
    before = peak()
    function()
    return round(peak() - before)
