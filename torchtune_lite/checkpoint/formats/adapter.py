"""LoRA and DoRA adapters in the layout of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT names a tensor `base_model.model.<HF module>.lora_A.weight`, where `<HF module>` is the projection's name in
transformers. Where the head or the embedding is adapted or has another size, it writes their own weights beside that,
as `<HF module>.base_layer.weight` or `<HF module>.weight`, and puts them into the base when it loads the adapter.

A matrix that transformers has fused (q, k and v of Phi) has one adapter there. Those of its parts, of rank r each, are
one with the A stacked and the B as blocks, of the sum of the ranks; an adapter of PEFT's own gives each part the same A
and its rows of B. Both are exact.

An adapter that has taken a part of its base (`init_lora_weights: pissa`) is written as one of twice the rank on the
base as it is: below its A and beside its B stand those of the start, B's with the other sign.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from torchtune_lite.checkpoint.formats.adapter_config import (
    CONFIG,
    Projection,
    config_misfits,
    config_problems,
    peft_config,
    projections,
    scaled_alpha,
)
from torchtune_lite.checkpoint.formats.files import read_files, read_json, write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import WITHIN, HFLayout
from torchtune_lite.checkpoint.model_weights import FLOATS, base_parameters, check_weights, is_finite, listed
from torchtune_lite.errors import CheckpointError
from torchtune_lite.peft import Adapter, DoRALinear, LoRALinear, dequantize, freeze_base, is_quantized, quantize
from torchtune_lite.utils.sharding import is_sharded, local, rows, whole

WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def adapter_tensors(model: nn.Module, layout: HFLayout) -> dict[str, Tensor]:
    """Return the live adapter of `model` by PEFT's names."""
    return {
        f"{PREFIX}{each.path}.{name}": tensor
        for each in projections(model, layout)
        for name, tensor in _tensors(each).items()
    }


def _tensors(projection: Projection) -> dict[str, Tensor]:
    adapters = projection.adapters
    if len(projection.parts) == 1:
        tensors = dict(zip((A, B), adapters[0].update_factors(), strict=True))
        return tensors | ({MAGNITUDE: adapters[0].magnitude} if adapters[0].use_dora else {})
    factors = {part: tuple(map(whole, part.update_factors())) for part in adapters}
    blocks = [
        factors[part][1] if part in factors else part.weight.new_zeros(part.weight.shape[0], 0)
        for part in projection.parts
    ]
    tensors = {A: torch.cat([a for a, _ in factors.values()]), B: torch.block_diag(*blocks)}
    if adapters[0].use_dora:  # a part without an adapter keeps the norms of its rows
        tensors[MAGNITUDE] = torch.cat(
            [
                whole(part.magnitude) if part in adapters else _row_norms(part.weight).to(tensors[A].dtype)
                for part in projection.parts
            ]
        )
    return tensors


def _row_norms(weight: Tensor) -> Tensor:
    norms = dequantize(weight).float().norm(dim=1)
    return whole(type(weight).from_local(norms, weight.device_mesh, weight.placements)) if is_sharded(weight) else norms


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


@torch.no_grad()
def load_adapter(
    model: nn.Module, path: Path | str, layout: HFLayout, base: Mapping[str, Weight] | None = None
) -> None:
    """Load a PEFT adapter, as `fitting_adapter` reads it, into the adapters of `model`, whose base is loaded.

    `base` has the weights by our names of a model whose base is not. CheckpointError lists whatever does not fit, in
    weights or in adapter_config.json; the model is then as it was.
    """
    weights = fitting_adapter(model, path, layout)
    of_base = _base_weights(weights, model, layout)
    if base is not None:
        of_base = {name: base[ours].read() for name, ours in _names_of_base(weights, model, layout).items()}
    if changed := [name for name, param in of_base.items() if not _is_same(param, weights[name])]:
        raise CheckpointError(
            f"adapter {path} does not fit: {listed(changed)} in it is not the weight of this base (trained, or "
            "resized for new tokens?); merge it in PEFT (merge_and_unload) and load the merged model"
        )
    values = {name: weight.read() for name, weight in weights.items() if name not in of_base}
    if broken := [name for name, value in values.items() if not is_finite(value)]:
        raise CheckpointError(f"adapter {path}: has NaN or infinity in {listed(broken)}")
    given: list[tuple[Tensor, Tensor]] = []
    for part, a, b, norms in _parts(model, layout, values, f"adapter {path}"):
        given += [(part.lora_a.weight, a[: part.rank]), (part.lora_b.weight, b[:, : part.rank])]
        given += [] if norms is None else [(part.magnitude, norms)]
    for param, value in given:
        local(param).copy_(value[rows(param)])


@torch.no_grad()
def read_start(model: nn.Module, path: Path | str, layout: HFLayout) -> None:
    """Give adapters that start from their base the start that a saved one had, before that base is read.

    It is not computed a second time, and is the same on a machine whose decompositions are others.
    """
    if not any(part.init_lora_weights for each in projections(model, layout) for part in each.adapters):
        return
    weights = fitting_adapter(model, path, layout)
    values = {name: weight.read() for name, weight in weights.items() if name.endswith((A, B))}
    for part, a, b, _ in _parts(model, layout, values, f"adapter {path}"):
        if part.init_lora_weights is not None:
            part.start = a[-part.rank :], -b[:, -part.rank :] if part.keeps_rest else b


def _parts(
    model: nn.Module, layout: HFLayout, values: Mapping[str, Tensor], source: str
) -> Iterator[tuple[LoRALinear, Tensor, Tensor, Tensor | None]]:
    """Yield each adapter of `model` with the A and B of its update, and its magnitudes, in a PEFT adapter."""
    for projection in projections(model, layout):
        a, b, magnitude = (values.get(f"{PREFIX}{projection.path}.{name}") for name in (A, B, MAGNITUDE))
        heights = [part.weight.shape[0] for part in projection.parts]
        magnitudes = [None] * len(heights) if magnitude is None else magnitude.split(heights)
        first, rest = 0, b.clone()
        for part, b_rows, rest_rows, norms in zip(
            projection.parts, b.split(heights), rest.split(heights), magnitudes, strict=True
        ):
            if not isinstance(part, Adapter):
                continue
            own = slice(None) if len(a) == part.update_rank else slice(first, first + part.update_rank)
            yield part, a[own], b_rows[:, own], norms
            rest_rows[:, own] = 0
            first += part.update_rank
        if rest.any():
            raise CheckpointError(
                f"{source} does not fit: that of {projection.path} also changes parts without an adapter here, "
                "or couples its parts; adapt q_proj, k_proj and v_proj, or w1 and w3, together, with its rank"
            )


@torch.no_grad()
def check_adapter(folder: Path, model: nn.Module, layout: HFLayout) -> None:
    """Raise CheckpointError where the adapter in `folder` is not, value by value, that of `model`."""
    weights, tensors = fitting_adapter(model, folder, layout), adapter_tensors(model, layout)
    if wrong := [name for name, tensor in tensors.items() if not _is_written(tensor, weights[name])]:
        raise CheckpointError(f"adapter {folder}: differs from the live one in {listed(wrong)}")


def _is_written(tensor: Tensor, weight: Weight) -> bool:
    own = rows(tensor)
    return torch.equal(weight.part(own.start, own.stop), local(tensor).cpu())


def fitting_adapter(model: nn.Module, path: Path | str, layout: HFLayout) -> dict[str, Weight]:
    """List the weights of an adapter, with those of the base that it may hold, and read none of them.

    `path` is its folder, a file in it, or a checkpoint folder of ours, which has it in `adapter/`. CheckpointError
    where its config or its shapes are not those of `model`.
    """
    folder = adapter_folder(path)
    if problems := config_misfits(read_json(folder / CONFIG), model, layout):
        raise CheckpointError(f"adapter {folder} does not fit: {'; '.join(problems)}")
    weights = _weights(folder, layout)
    of_base = _base_weights(weights, model, layout)
    own = {name: weight for name, weight in weights.items() if name not in of_base}
    check_weights(_expected(model, layout, own), own, f"adapter {folder}")
    return weights


def adapter_folder(path: Path | str) -> Path:
    """Return the folder of an adapter: of one of its files, or `adapter/` in a checkpoint folder of ours."""
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    inside = not (folder / CONFIG).exists() and (folder / "adapter" / CONFIG).exists()
    return folder / "adapter" if inside else folder


def _weights(folder: Path, layout: HFLayout) -> dict[str, Weight]:
    file = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"adapter {folder}: has no {WEIGHTS} or {OLD_WEIGHTS}")
    return _by_live_name(_by_saved_name(read_files([file])[file.name], file), layout)


def put_adapters(model: nn.Module, path: Path | str, layout: HFLayout) -> None:
    """Put adapters on those projections of a plain `model` for which an adapter of PEFT's has weights, of its ranks.

    Their values come from `load_adapter`. Each part of a fused matrix gets one of the rank of the whole matrix.
    CheckpointError where the adapter is not served, or has weights for a projection that `model` lacks.
    """
    folder = adapter_folder(path)
    config = read_json(folder / CONFIG)
    if problems := config_problems(config, layout):
        raise CheckpointError(f"adapter {folder} does not fit: {'; '.join(problems)}")
    places: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            places.setdefault(f"{PREFIX}{layout.module_path(f'{name}.weight')}", []).append(name)
    ranks = {name.removesuffix(f".{A}"): w.shape[0] for name, w in _weights(folder, layout).items() if name.endswith(A)}
    if unknown := [path.removeprefix(PREFIX) for path in ranks if path not in places]:
        raise CheckpointError(f"adapter {folder} does not fit: the model has no projection {listed(unknown)}")
    if not ranks:
        raise CheckpointError(f"adapter {folder} does not fit: it has no weights {A}")
    kind = DoRALinear if config.get("use_dora") else LoRALinear
    for path, rank in ranks.items():
        alpha = scaled_alpha(config, path.removeprefix(PREFIX), rank)
        for name in places[path]:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, kind.from_linear(model.get_submodule(name), rank, alpha))
    freeze_base(model)


def _expected(model: nn.Module, layout: HFLayout, given: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return tensors of the shapes that an adapter must have; of a fused matrix its rank may be that of one part."""
    expected = adapter_tensors(model, layout)
    for each in projections(model, layout):
        a, b = (f"{PREFIX}{each.path}.{name}" for name in (A, B))
        if len(each.parts) > 1 and a in given and given[a].shape[:1] == (each.adapters[0].update_rank,):
            expected[a], expected[b] = expected[a][: given[a].shape[0]], expected[b][:, : given[a].shape[0]]
    return expected


def _by_live_name(weights: Mapping[str, Weight], layout: HFLayout) -> dict[str, Weight]:
    """Rename what belongs to a text model, whether or not it was adapted within a larger one, as it is named here."""

    def renamed(name: str) -> str:
        path = WITHIN.sub("", name.removeprefix(PREFIX))
        return f"{PREFIX}{path.replace('model.', 'model.language_model.', 1) if layout.within else path}"

    return {renamed(name) if name.startswith(PREFIX) else name: weight for name, weight in weights.items()}


def _by_saved_name(weights: Mapping[str, Weight], file: Path) -> dict[str, Weight]:
    """Return the weights by the names that `save_pretrained` writes: those of a state dict name the adapter, too."""
    found: dict[str, Weight] = {}
    for given, weight in weights.items():
        name = re.sub(r"\.(lora_[AB]|lora_magnitude_vector)\.default\b", r".\1", given)
        name = name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name
        if name in found:
            raise CheckpointError(f"{file}: holds {name} twice")
        found[name] = weight
    return found


def _base_weights(weights: Mapping[str, Weight], model: nn.Module, layout: HFLayout) -> dict[str, Tensor]:
    """Find the live parameters of the base whose weights are among those of an adapter, by the names there."""
    params = base_parameters(model)
    return {name: params[ours] for name, ours in _names_of_base(weights, model, layout).items()}


def _names_of_base(weights: Mapping[str, Weight], model: nn.Module, layout: HFLayout) -> dict[str, str]:
    params = base_parameters(model)
    ours = {name: layout.our_name(name.removeprefix(PREFIX).replace(".base_layer.", ".")) for name in weights}
    return {name: known for name, known in ours.items() if name.startswith(PREFIX) and known in params}


def _is_same(param: Tensor, weight: Weight) -> bool:
    """Return whether a weight is that of the base, to the precision of either; NF4 if it gives the same codes."""
    if weight.shape != tuple(param.shape) or weight.dtype not in FLOATS:
        return False
    own = rows(param)
    value, live = weight.part(own.start, own.stop), dequantize(param.detach())
    if not is_finite(value):
        return False
    cast = value.to(device=param.device, dtype=param.dtype)
    if is_quantized(param):
        return torch.equal(dequantize(quantize(cast, param)), live)
    return torch.equal(cast, live) or torch.equal(live.to(value.dtype), value.to(param.device))
