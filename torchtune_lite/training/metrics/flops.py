"""The FLOPs of a step and of a GPU: their quotient is the model FLOPs utilisation (MFU)."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

PEAKS = {  # dense bf16 tensor-core FLOP/s of the data sheets
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 4080": 97e12,
    "RTX 3090": 71e12,
    "B200": 2250e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the bf16 FLOP/s that the device's maker gives; None where it is not known, as of a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "Laptop" in name:  # slower than the card of its name
        return None
    return next((peak for known, peak in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def step_flops(model: nn.Module, seq_lens: Iterable[int], num_label_tokens: int) -> float:
    """Count the FLOPs of a step's matrix products: forward, gradients of inputs, and of the weights that are trained.

    The output projection counts for label tokens only, and attention for the causal half of each sample's scores.
    What activation checkpointing computes a second time does not count (PaLM, arXiv 2204.02311, appendix B).
    """
    lens: Sequence[int] = list(seq_lens)
    body, head = _per_token(model.layers), _per_token(model.output)
    config = model.config
    attention = 6 * config.num_layers * config.num_heads * config.head_dim * sum(n * n for n in lens)
    return body * sum(lens) + head * num_label_tokens + attention


def _per_token(part: nn.Module) -> int:
    return sum(
        (6 if weight.requires_grad else 4) * weight.shape.numel() for weight in part.parameters() if weight.dim() == 2
    )
