"""A LoRA adapter as a GGUF, for `llama-server --lora` and `ADAPTER` in a Modelfile.

llama.cpp scales each pair by one alpha over its own rank; other scalings are put into B.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torchtune_lite.checkpoint.formats.rotary_layout import interleaved
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.export.gguf.architectures import Architecture, architecture_of
from torchtune_lite.export.gguf.files import read_gguf, write_gguf
from torchtune_lite.export.gguf.tensors import to_weights
from torchtune_lite.export.lora import with_lora
from torchtune_lite.export.source import Source
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import LoRALinear, adapter_modules

A, B = ".weight.lora_a", ".weight.lora_b"


def write_adapter(source: Source, path: Path, kind: str) -> Mapping[str, Weight]:
    """Write the adapter of a source, as the LoRA that it is, to a new file.

    Return the weights of its base with what was written merged in. ConfigError where no LoRA has its function.
    """
    source = with_lora(source)
    adapters: dict[str, LoRALinear] = adapter_modules(source.model)
    architecture, config = architecture_of(source.family.model_type), source.config
    architecture.check(config)
    alpha = max(adapter.alpha for adapter in adapters.values())
    tensors: dict[str, Weight] = {}
    for theirs in dict.fromkeys(architecture.module(name) for name in adapters):
        a, b = _factors(architecture, config, theirs, adapters)
        tensors[f"{theirs}{A}"], tensors[f"{theirs}{B}"] = Weight.of(a), Weight.of(b * (len(a) / alpha))
    metadata = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(alpha)}
    write_gguf(path, architecture.name, metadata | {"general.name": path.stem}, tensors, kind)
    return source.base | _merged(source, architecture, read_gguf(path)[1], alpha)


def _factors(
    architecture: Architecture, config: DecoderConfig, theirs: str, adapters: Mapping[str, LoRALinear]
) -> tuple[Tensor, Tensor]:
    """Return A and B of a module in a file, with B scaled; of a fused one, those of its parts in one."""
    of_a, of_b = [], []
    for part in architecture.parts(theirs):
        adapter = adapters.get(part)
        if adapter is None:
            of_b.append(torch.zeros(config.out_dim(part), 0))
            continue
        b = adapter.lora_b.weight.detach().float() * adapter.scaling
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(part.rpartition(".")[2])
        of_a.append(adapter.lora_a.weight.detach().float())
        of_b.append(interleaved(b, heads) if architecture.permuted and heads else b)
    return torch.cat(of_a), torch.block_diag(*of_b)


def _merged(
    source: Source, architecture: Architecture, tensors: Mapping[str, Weight], alpha: float
) -> dict[str, Weight]:
    """Merge the pairs of a file into the base, as llama.cpp computes with them."""

    def change(module: str) -> Weight:
        a, b = tensors[f"{module}{A}"], tensors[f"{module}{B}"]
        shape = (b.shape[0], a.shape[1])
        return Weight(torch.float32, shape, lambda: b.read().float() @ a.read().float() * (alpha / a.shape[0]))

    modules = [name.removesuffix(A) for name in tensors if name.endswith(A)]
    changes = to_weights(architecture, source.config, {f"{module}.weight": change(module) for module in modules})
    adapted = {f"{name}.weight" for name in adapter_modules(source.model)}
    return {
        name: source.base[name].mapped(lambda base, name=name: base.float() + changes[name].read(), torch.float32)
        for name in adapted
    }
