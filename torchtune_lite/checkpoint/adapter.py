"""LoRA and DoRA adapters in the layout of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT names a tensor `base_model.model.<HF module>.lora_A.weight`, where `<HF module>` is the projection's name in
transformers. Where the head or the embedding is adapted or has another size, it writes their own weights beside that,
as `<HF module>.base_layer.weight` or `<HF module>.weight`, and puts them into the base when it loads the adapter.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from torchtune_lite.checkpoint.adapter_config import CONFIG, adapter_config, config_misfits, hf_adapter_modules
from torchtune_lite.checkpoint.files import read_files, read_json, write_json
from torchtune_lite.checkpoint.model_weights import FLOATS, base_parameters, check_weights, is_finite, some
from torchtune_lite.checkpoint.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import Family
from torchtune_lite.peft import dequantize, is_quantized, quantize

WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
PEFT_NAMES = {
    "lora_a.weight": "lora_A.weight",
    "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}


def adapter_params(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """Gives the live adapter parameters of `model` by PEFT's names."""
    return {
        f"{PREFIX}{path}.{PEFT_NAMES[param]}": module.get_parameter(param)
        for path, module in hf_adapter_modules(model, family).items()
        for param in module.adapter_params()
    }


def write_adapter(folder: Path, model: nn.Module, family: Family, base: Path | str) -> None:
    """Writes the adapter of `model` to a new folder, in its own dtype; `base` is the folder of its base model."""
    folder.mkdir()
    weights = {name: Weight.of(param) for name, param in adapter_params(model, family).items()}
    write_safetensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, adapter_config(model, family, base))


@torch.no_grad()
def load_adapter(model: nn.Module, path: Path | str, family: Family) -> None:
    """Loads a PEFT adapter, as `fitting_adapter` reads it, into the adapters of `model`, whose base is loaded.

    CheckpointError lists whatever does not fit, in weights or in adapter_config.json; the model is then as it was.
    """
    weights = fitting_adapter(model, path, family)
    of_base = _base_weights(weights, model, family)
    if changed := [name for name, param in of_base.items() if not _is_same(param, weights[name])]:
        raise CheckpointError(
            f"adapter {path} does not fit: {some(changed)} in it is not the weight of this base (trained, or resized "
            "for new tokens?); merge it in PEFT (merge_and_unload) and load the merged model"
        )
    params = adapter_params(model, family)
    values = {name: weights[name].read() for name in params}
    if broken := [name for name, value in values.items() if not is_finite(value)]:
        raise CheckpointError(f"adapter {path}: has NaN or infinity in {some(broken)}")
    for name, param in params.items():
        param.copy_(values[name])


@torch.no_grad()
def check_adapter(folder: Path, model: nn.Module, family: Family) -> None:
    """Raises CheckpointError where the adapter in `folder` is not, value by value, that of `model`."""
    weights, params = fitting_adapter(model, folder, family), adapter_params(model, family)
    if wrong := [name for name, param in params.items() if not torch.equal(weights[name].read(), param.cpu())]:
        raise CheckpointError(f"adapter {folder}: has other values than the live one in {some(wrong)}")


def fitting_adapter(model: nn.Module, path: Path | str, family: Family) -> dict[str, Weight]:
    """Lists the weights of an adapter, with those of the base that it may hold, and reads none of them.

    `path` is its folder, a file in it, or a checkpoint folder of ours, which has it in `adapter/`. CheckpointError
    where its config or its shapes are not those of `model`.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if not (folder / CONFIG).exists() and (folder / "adapter" / CONFIG).exists():
        folder = folder / "adapter"
    config = read_json(folder / CONFIG)
    if problems := config_misfits(config, model, family):
        raise CheckpointError(f"adapter {folder} does not fit: {'; '.join(problems)}")
    file = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"adapter {folder}: has no {WEIGHTS} or {OLD_WEIGHTS}")
    weights = _by_saved_name(read_files([file])[file.name], file)
    of_base = _base_weights(weights, model, family)
    own = {name: weight for name, weight in weights.items() if name not in of_base}
    check_weights(adapter_params(model, family), own, f"adapter {folder}")
    return weights


def _by_saved_name(weights: Mapping[str, Weight], file: Path) -> dict[str, Weight]:
    """Gives the weights by the names that `save_pretrained` writes: those of a state dict name the adapter, too."""
    found: dict[str, Weight] = {}
    for given, weight in weights.items():
        name = re.sub(r"\.(lora_[AB]|lora_magnitude_vector)\.default\b", r".\1", given)
        name = name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name
        if name in found:
            raise CheckpointError(f"{file}: holds {name} twice")
        found[name] = weight
    return found


def _base_weights(weights: Mapping[str, Weight], model: nn.Module, family: Family) -> dict[str, Tensor]:
    """Finds the live parameters of the base whose weights are among those of an adapter, by the names there."""
    params = base_parameters(model)
    ours = {name: family.from_hf(name.removeprefix(PREFIX).replace(".base_layer.", ".")) for name in weights}
    return {name: params[known] for name, known in ours.items() if name.startswith(PREFIX) and known in params}


def _is_same(param: Tensor, weight: Weight) -> bool:
    """Tells whether a weight is that of the base, to the precision of either; NF4 if it gives the same codes."""
    if weight.shape != tuple(param.shape) or weight.dtype not in FLOATS:
        return False
    value, live = weight.read(), dequantize(param.detach())
    if not is_finite(value):
        return False
    cast = value.to(device=param.device, dtype=param.dtype)
    if is_quantized(param):
        return torch.equal(dequantize(quantize(cast)), live)
    return torch.equal(cast, live) or torch.equal(live.to(value.dtype), value.to(param.device))
