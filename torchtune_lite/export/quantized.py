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
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.hf import write_small_files
from torchtune_lite.export.source import Source

SCHEMES = {"int8": "Int8WeightOnlyConfig", "int4": "Int4WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
"""torchao's configs: int8 and fp8 with a scale for each row, int4 with one for each 128 weights of a row."""


def write_quantized(source: Source, folder: Path, scheme: str) -> Mapping[str, Weight]:
    """Write the merged model with quantised projections; return the weights by our names, dequantised.

    Only what is quantised is held in memory, beside one projection. ConfigError where torchao cannot do it here.
    """
    from safetensors.torch import save_file
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    config = _config(scheme)
    weights = {name: weight.to(source.base[name].dtype) for name, weight in source.weights.items()}
    state = {
        name: _quantized(weight.read(), config, scheme) if _is_projection(source, name, weight) else weight.read()
        for name, weight in source.layout.theirs(weights).items()
    }
    flat, metadata = flatten_tensor_state_dict(state)
    save_file(flat, folder / "model.safetensors", metadata | {"format": "pt"})
    described = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(config)}}
    dtype = str(source.base["tok_embeddings.weight"].dtype).removeprefix("torch.")
    values = source.checkpointer.model_config | {"dtype": dtype, "torch_dtype": dtype}
    write_json(folder / "config.json", values | {"quantization_config": described})
    write_small_files(source, folder)
    return source.layout.ours({name: _dequantized(tensor) for name, tensor in state.items()})


def _config(scheme: str) -> Any:
    import torchao.quantization

    return getattr(torchao.quantization, SCHEMES[scheme])()


def _is_projection(source: Source, name: str, weight: Weight) -> bool:
    return len(weight.shape) == 2 and ".layers." in name and name not in source.layout.carried


def _quantized(values: Tensor, config: Any, scheme: str) -> Tensor:
    from torchao.quantization import quantize_

    linear = nn.Linear(1, 1, bias=False, device="meta")
    linear.weight = nn.Parameter(values, requires_grad=False)
    linear.out_features, linear.in_features = values.shape
    try:
        quantize_(linear, config)
    except (ImportError, RuntimeError, NotImplementedError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--to {scheme}: torchao cannot write it on this machine ({reason}); use --to int8"
        ) from error
    return linear.weight.detach()


def _dequantized(tensor: Tensor) -> Weight:
    read = tensor.dequantize if is_traceable_wrapper_subclass(tensor) else lambda: tensor
    return Weight(tensor.dtype, tuple(tensor.shape), read)
