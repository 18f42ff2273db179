"""Adapters in the layout of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT names a tensor `base_model.model.<HF module>.lora_A.weight`, where `<HF module>` is the projection's name in
transformers; which tensors there are, each method's `peft.PeftFile` says. Where the head or the embedding is adapted or
has another size, PEFT writes their own weights beside that, as `<HF module>.base_layer.weight` or
`<HF module>.weight`, and puts them into the base when it loads the adapter.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.checkpoint.formats.adapter_config import (
    CONFIG,
    config_misfits,
    file_of,
    peft_config,
    projections,
)
from torchtune_lite.checkpoint.formats.adapter_embeddings import embedding_tensors
from torchtune_lite.checkpoint.formats.files import read_files, read_json, write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import WITHIN, HFLayout
from torchtune_lite.checkpoint.model_weights import FLOATS, base_parameters, check_weights, is_finite, listed
from torchtune_lite.errors import CheckpointError
from torchtune_lite.peft import (
    PREFIX,
    PeftFile,
    Projection,
    adapter_modules,
    dequantize,
    is_quantized,
    quantize,
)
from torchtune_lite.utils.sharding import local, rows

WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"

REPEATED = re.compile(r"\.(modules_to_save|original_module)\.weight$")
ROWS = "trainable_tokens_delta"
OF_HEAD = re.compile(rf"\.lm_head(\.token_adapter)?\.{ROWS}$")


def adapter_tensors(model: nn.Module, layout: HFLayout) -> dict[str, Tensor]:
    """Return the live adapter of `model` by PEFT's names."""
    adapted = projections(model, layout)
    return file_of(adapted).tensors(adapted) | embedding_tensors(model, layout)


def write_adapter(folder: Path, model: nn.Module, layout: HFLayout, base: Path | str) -> None:
    """Write the adapter of `model` to a new folder, in its own dtype; `base` is the folder of its base model."""
    write_adapter_config(folder, model, layout, base)
    write_safetensors(folder / WEIGHTS, adapter_weights(model, layout))


@torch.no_grad()
def adapter_weights(model: nn.Module, layout: HFLayout) -> dict[str, Weight]:
    """Return the live adapter of `model` by PEFT's names, to be written."""
    return {name: Weight.of(tensor) for name, tensor in adapter_tensors(model, layout).items()}


def write_adapter_config(folder: Path, model: nn.Module, layout: HFLayout, base: Path | str) -> None:
    """Make the folder of an adapter, with its config."""
    folder.mkdir()
    write_json(folder / CONFIG, peft_config(model, layout, base))


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in files that fits that of `model`: its config, and its weights with those of the base among them.

    None of the weights is read yet.
    """

    source: str
    model: nn.Module
    layout: HFLayout
    adapted: Sequence[Projection]
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    of_base: Mapping[str, str]
    """Our names of those that are the base's."""

    @property
    def file(self) -> PeftFile:
        """How the adapters stand in it."""
        return file_of(self.adapted)

    @torch.no_grad()
    def load(self, base: Mapping[str, Weight] | None = None) -> None:
        """Load it into the adapters of the model, whose base is loaded; or `base` has its weights by our names.

        CheckpointError lists what is not finite, or not the weight of this base; the model is then as it was.
        """
        live = base_parameters(self.model)
        of_base = {name: live[ours] if base is None else base[ours].read() for name, ours in self.of_base.items()}
        if changed := [name for name, param in of_base.items() if not _is_same(param, self.weights[name])]:
            raise CheckpointError(
                f"{self.source} does not fit: {listed(changed)} in it is not the weight of this base (trained, or "
                "resized for new tokens?); merge it in PEFT (merge_and_unload) and load the merged model"
            )
        values = self._values()
        given = list(self.file.assigned(self.adapted, self.config, values, self.source))
        given += [(param, values[name]) for name, param in embedding_tensors(self.model, self.layout).items()]
        for param, value in given:
            local(param).copy_(value[rows(param)])

    @property
    def trained_base(self) -> dict[str, Weight]:
        """The weights of the base that were trained whole, by our names."""
        names = {name: self.layout.our_name(name.removeprefix(PREFIX)) for name in self.weights}
        params = base_parameters(self.model)
        trained = {name: ours for name, ours in names.items() if ours in params and params[ours].requires_grad}
        return {ours: self.weights[name] for name, ours in trained.items()}

    @torch.no_grad()
    def read_start(self) -> None:
        """Give adapters that start from their base the start that a saved one had, before that base is read."""
        if any(adapter.starts_from_base for adapter in adapter_modules(self.model).values()):
            self.file.read_start(self.adapted, self._values(), self.source)

    def _values(self) -> dict[str, Tensor]:
        values = {name: weight.read() for name, weight in self.weights.items() if name not in self.of_base}
        if broken := [name for name, value in values.items() if not is_finite(value)]:
            raise CheckpointError(f"{self.source}: has NaN or infinity in {listed(broken)}")
        return values


def open_adapter(model: nn.Module, path: Path | str, layout: HFLayout) -> SavedAdapter:
    """Open an adapter for `model`; read none of its weights.

    `path` is its folder, a file in it, or a checkpoint folder of ours, which has it in `adapter/`. CheckpointError
    where its config or its shapes are not those of `model`.
    """
    folder = adapter_folder(path)
    config, source = read_json(folder / CONFIG), f"adapter {folder}"
    if problems := config_misfits(config, model, layout):
        raise CheckpointError(f"{source} does not fit: {'; '.join(problems)}")
    adapted = projections(model, layout)
    weights = saved_weights(folder, layout, file_of(adapted))
    of_base = _names_of_base(weights, model, layout)
    own = {name: weight for name, weight in weights.items() if name not in of_base}
    expected = file_of(adapted).expected(adapted, config, own) | embedding_tensors(model, layout)
    check_weights(expected, own, source)
    return SavedAdapter(source, model, layout, adapted, config, weights, of_base)


def load_adapter(
    model: nn.Module, path: Path | str, layout: HFLayout, base: Mapping[str, Weight] | None = None
) -> None:
    """Load a PEFT adapter into the adapters of `model`, as `open_adapter` opens it and `SavedAdapter.load` loads it."""
    open_adapter(model, path, layout).load(base)


@torch.no_grad()
def check_adapter(folder: Path, model: nn.Module, layout: HFLayout) -> None:
    """Raise CheckpointError where the adapter in `folder` is not, value by value, that of `model`."""
    weights, tensors = open_adapter(model, folder, layout).weights, adapter_tensors(model, layout)
    if wrong := [name for name, tensor in tensors.items() if not _is_written(tensor, weights[name])]:
        raise CheckpointError(f"adapter {folder}: differs from the live one in {listed(wrong)}")


def _is_written(tensor: Tensor, weight: Weight) -> bool:
    own = rows(tensor)
    return torch.equal(weight.part(own.start, own.stop), local(tensor).cpu())


def adapter_folder(path: Path | str) -> Path:
    """Return the folder of an adapter: of one of its files, or `adapter/` in a checkpoint folder of ours."""
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    inside = not (folder / CONFIG).exists() and (folder / "adapter" / CONFIG).exists()
    return folder / "adapter" if inside else folder


def saved_weights(folder: Path, layout: HFLayout, method: PeftFile) -> dict[str, Weight]:
    """List the weights of an adapter of this method, by the names that PEFT saves them by; none is read."""
    file = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"adapter {folder}: has no {WEIGHTS} or {OLD_WEIGHTS}")
    weights = _by_live_name(_by_saved_name(read_files([file])[file.name], method, file), layout)
    # of the matrices whose rows are trained PEFT writes the frozen ones where they were resized, and of a tied output
    # the same rows once more
    frozen = {name.replace(ROWS, "base_layer.weight") for name in weights if name.endswith(ROWS)}
    twice = {name for name in weights if layout.config.tie_word_embeddings and OF_HEAD.search(name)}
    return {name: weight for name, weight in weights.items() if name not in frozen | twice}


def _by_live_name(weights: Mapping[str, Weight], layout: HFLayout) -> dict[str, Weight]:
    """Rename what belongs to a text model, whether or not it was adapted within a larger one, as it is named here."""

    def renamed(name: str) -> str:
        path = WITHIN.sub("", name.removeprefix(PREFIX))
        return f"{PREFIX}{path.replace('model.', 'model.language_model.', 1) if layout.within else path}"

    return {renamed(name) if name.startswith(PREFIX) else name: weight for name, weight in weights.items()}


def _by_saved_name(weights: Mapping[str, Weight], method: PeftFile, file: Path) -> dict[str, Weight]:
    """Return the weights by the names that `save_pretrained` writes: those of a state dict name the adapter, too.

    What PEFT repeats of a model whose embedding was resized is left out: the matrix as it was, and as it is trained.
    """
    found: dict[str, Weight] = {}
    for given, weight in weights.items():
        if REPEATED.search(given) and REPEATED.sub(".weight", given) in weights:
            continue
        name = re.sub(r"\.default(\.weight)?$", r"\1", given)
        if name.endswith(tuple(f".{each}.weight" for each in method.names)):
            name = name.removesuffix(".weight")
        if name in found:
            raise CheckpointError(f"{file}: holds {name} twice")
        found[name] = weight
    return found


def _names_of_base(weights: Mapping[str, Weight], model: nn.Module, layout: HFLayout) -> dict[str, str]:
    """Find the frozen parameters of the base whose weights are among those of an adapter: our names by those there."""
    params = base_parameters(model)
    ours = {name: layout.our_name(name.removeprefix(PREFIX).replace(".base_layer.", ".")) for name in weights}
    frozen = {name for name, param in params.items() if not param.requires_grad}
    return {name: known for name, known in ours.items() if name.startswith(PREFIX) and known in frozen}


def _is_same(param: Tensor, weight: Weight) -> bool:
    """Return whether a weight is that of the base, to the precision of either; NF4 if it gives the same codes."""
    if weight.shape != tuple(param.shape) or weight.dtype not in FLOATS:
        return False
    own = rows(param)
    value, live = weight.part(own.start, own.stop), dequantize(local(param.detach()))
    if not is_finite(value):
        return False
    cast = value.to(device=param.device, dtype=param.dtype)
    if is_quantized(param):
        return torch.equal(dequantize(quantize(cast, param)), live)
    return torch.equal(cast, live) or torch.equal(live.to(value.dtype), value.to(param.device))
