"""The weights of a model as the tensors of a GGUF, both ways: names, fused matrices, the order of rows, norms.

A Gemma's norms multiply by 1 + weight, and a GGUF holds the sum.
"""

from collections.abc import Mapping
from functools import partial

import torch

from torchtune_lite.checkpoint.formats.rotary_layout import half_split, interleaved
from torchtune_lite.checkpoint.formats.weights import Weight, joined
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.architectures import Architecture
from torchtune_lite.export.gguf.metadata import FACTORS, LONG, SHORT, rope_factors
from torchtune_lite.modules import DecoderConfig


def to_tensors(architecture: Architecture, config: DecoderConfig, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the tensors of a file of `weights` by our names, which are read when these are."""
    changed = {name: _changed(architecture, config, name, weight) for name, weight in weights.items()}
    tensors = {name: Weight.of(factors) for name, factors in rope_factors(config).items()}
    for name in changed:
        module, _, kind = name.rpartition(".")
        theirs = architecture.module(module)
        parts = architecture.parts(theirs)
        if module == parts[0]:
            tensors[f"{theirs}.{kind}"] = joined([changed[f"{part}.{kind}"] for part in parts])
    return tensors


def to_weights(architecture: Architecture, config: DecoderConfig, tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights by our names: the reverse of `to_tensors`; CheckpointError names a tensor of no known one."""
    weights: dict[str, Weight] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        parts, start = architecture.parts(module), 0
        if not parts and name not in (FACTORS, LONG, SHORT):
            raise CheckpointError(f"holds {name}, which is not a tensor of a {architecture.name} model")
        for part in parts:
            rows = tensor.shape[0] if len(parts) == 1 else config.out_dim(part)
            weights[f"{part}.{kind}"] = tensor.rows(start, start + rows)
            start += rows
    return {name: _changed(architecture, config, name, weight, back=True) for name, weight in weights.items()}


def _changed(
    architecture: Architecture, config: DecoderConfig, name: str, weight: Weight, back: bool = False
) -> Weight:
    module = name.split(".")[-2]
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module)
    if heads is not None and architecture.permuted:
        return weight.mapped(partial(half_split if back else interleaved, num_heads=heads))
    if config.norm_offset and module.endswith("norm"):
        offset = -config.norm_offset if back else config.norm_offset
        return weight.mapped(lambda values: values.float() + offset, torch.float32)
    return weight
