"""torch.compile, a layer at a time."""

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.kernels.varlen_attention import find_kernel
from torchtune_lite.modules import attention

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Let torch.compile compile each layer when it first runs: one graph serves all layers and all lengths.

    Sizes are symbols from the first graph on, or each that changes later would cost another. Where packed sequences
    have no kernel of their own, on a CPU and on older GPUs, attention over them is left out, and a layer is several
    graphs; so is a feed-forward in tiles (`mlp_tile`).

    What is compiled is kept in `~/.cache/torchtune_lite/inductor` for later runs, unless `TORCHINDUCTOR_CACHE_DIR` says
    otherwise. ConfigError where there is no compiler: g++ for a CPU, Triton for a GPU.
    """
    if device.type == "cpu" and shutil.which(os.environ.get("CXX") or "c++") is None:
        raise ConfigError("compile: True needs a C++ compiler for a CPU; install g++, or set compile=False")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("compile: True needs Triton for a GPU; pip install triton, or set compile=False")
    os.environ.setdefault(CACHE, str(Path.home() / ".cache" / "torchtune_lite" / "inductor"))
    torch._dynamo.config.specialize_float = True  # alpha and eps would be tensors on the CPU, compiled by g++
    find_kernel(torch.empty(0, device=device).device)  # "cuda" is none of a tensor's devices, "cuda:0" is
    attention.packed_attention = torch.compiler.disable(attention.packed_attention)
    for layer in model.layers:
        if layer.mlp.tile:
            layer.mlp.forward = torch.compiler.disable(layer.mlp.forward)
        layer.compile(dynamic=True)
