"""Weights quantised by torchao, in a folder that transformers and vLLM load with torchao of about the same age.

The projections of the layers are quantised; embedding, output and norms keep their dtype, as transformers leaves them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchtune_lite.checkpoint.formats.files import write_json
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.errors import ConfigError
from torchtune_lite.export import int4
from torchtune_lite.export.hf import write_small_files
from torchtune_lite.export.source import Source
from torchtune_lite.peft.nf4 import import_torchao
from torchtune_lite.utils import counted, get_logger

SCHEMES = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
"""torchao's configs: int8 and fp8 with a scale for each row, int4 with scale and zero for each 128 of its weights."""


def write_quantized(source: Source, folder: Path, scheme: str) -> Mapping[str, Weight]:
    """Write the merged model with quantised projections; return the weights by our names, dequantised.

    Only what is quantised is held in memory, beside one projection. With int4 the rest is in bf16, as its product is.
    ConfigError where torchao cannot do it here.
    """
    from safetensors.torch import save_file

    config = getattr(import_torchao("torchao.quantization"), SCHEMES[scheme])()
    dtype = int4.DTYPE if scheme == "int4" else source.base["tok_embeddings.weight"].dtype
    weights = {
        name: weight.to(dtype if scheme == "int4" else source.base[name].dtype)
        for name, weight in source.weights.items()
    }
    theirs = source.layout.theirs(weights)
    chosen = _projections(source, theirs, scheme)
    state = {
        name: _quantized(weight.read(), config, scheme) if name in chosen else weight.read()
        for name, weight in theirs.items()
    }
    support = import_torchao("torchao.prototype.safetensors.safetensors_support")
    flat, metadata = support.flatten_tensor_state_dict(state)
    save_file(flat, folder / "model.safetensors", metadata | {"format": "pt"})
    described = import_torchao("torchao.core.config").config_to_dict(config)
    named = str(dtype).removeprefix("torch.")
    values = source.checkpointer.model_config | {"dtype": named, "torch_dtype": named}
    quantization = {"quant_method": "torchao", "quant_type": {"default": described}}
    write_json(folder / "config.json", values | {"quantization_config": quantization})
    write_small_files(source, folder)
    return source.layout.ours({name: _dequantized(tensor, scheme) for name, tensor in state.items()})


def _projections(source: Source, weights: Mapping[str, Weight], scheme: str) -> set[str]:
    """Name what is quantised; a line names what int4 does not fit."""
    names = [
        name
        for name, weight in weights.items()
        if len(weight.shape) == 2 and ".layers." in name and name not in source.layout.carried
    ]
    odd = [name for name in names if scheme == "int4" and weights[name].shape[1] % int4.GROUP]
    if odd:
        are = counted(len(odd), "projection stays", "projections stay")
        get_logger().warning("%s in bf16, with rows that are no multiple of %d: %s", are, int4.GROUP, listed(odd))
    return set(names) - set(odd)


def _quantized(values: Tensor, config: Any, scheme: str) -> Tensor:
    if scheme == "int4":
        return int4.encode(values)
    linear = nn.Linear(1, 1, bias=False, device="meta")
    linear.weight = nn.Parameter(values, requires_grad=False)
    linear.out_features, linear.in_features = values.shape
    try:
        import_torchao("torchao.quantization").quantize_(linear, config)
    except (ImportError, RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--to {scheme}: torchao cannot write it on this machine ({reason}); use --to int8"
        ) from error
    return linear.weight.detach()


def _dequantized(tensor: Tensor, scheme: str) -> Weight:
    def read() -> Tensor:
        if not is_traceable_wrapper_subclass(tensor):
            return tensor
        return int4.decode(tensor) if scheme == "int4" else tensor.dequantize()

    return Weight(tensor.dtype, tuple(tensor.shape), read)
