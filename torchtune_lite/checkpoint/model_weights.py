"""Between a model and weights by our names: reading them in and giving them out, one tensor at a time."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError, SaveError
from torchtune_lite.peft import adapter_state, changed_biases, dequantize, is_quantized, mergeable_modules, quantize
from torchtune_lite.utils import counted
from torchtune_lite.utils.sharding import is_sharded, local, rows, with_rows, written_rows

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def listed(names: Iterable[str], limit: int = 3) -> str:
    """Shorten a list for a message: `a, b, c and 9 more`."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check_weights(expected: Mapping[str, Tensor], given: Mapping[str, Weight], source: object) -> None:
    """Raise CheckpointError with every weight of `given` that is missing, too much, of another shape, or quantised."""
    problems = []
    if missing := [name for name in expected if name not in given]:
        problems.append(f"{counted(len(missing), 'weight is', 'weights are')} missing ({listed(missing)})")
    if unexpected := [name for name in given if name not in expected]:
        problems.append(f"{counted(len(unexpected), 'is', 'are')} not the model's ({listed(unexpected)})")
    both = {name: (tuple(expected[name].shape), given[name]) for name in expected if name in given}
    if misfits := [
        f"{name}: {weight.shape}, the model's is {shape}"
        for name, (shape, weight) in both.items()
        if weight.shape != shape
    ]:
        problems.append(f"{counted(len(misfits), 'has', 'have')} another shape ({listed(misfits)})")
    if dtypes := sorted(
        {str(weight.dtype).removeprefix("torch.") for weight in given.values() if weight.dtype not in FLOATS}
    ):
        problems.append(f"weights are {', '.join(dtypes)} (a quantised export?); load an fp32, bf16 or fp16 checkpoint")
    if problems:
        raise CheckpointError(f"{source} does not fit: {'; '.join(problems)}")


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` outside adapters, by name."""
    adapters = adapter_state(model)
    return {name: param for name, param in model.named_parameters() if name not in adapters}


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Weight],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    source: object,
    adapter_dtype: torch.dtype | None = None,
) -> None:
    """Fill base parameters of `model` with checked `weights`: each read, cast, moved, quantised and dropped.

    Those are quantised that the model has in NF4. An adapter may start from its weight, in `adapter_dtype` (None:
    `dtype`), and leave the rest of it to be kept. A parameter on the meta device is replaced, `requires_grad` kept;
    one that exists is overwritten in place. At most two full tensors are held beside what is mapped and the model.
    CheckpointError names `source` and the weight that holds NaN or infinity; the model is then half filled.
    """
    params = base_parameters(model)
    adapters = {f"{name}.weight": module for name, module in mergeable_modules(model).items()}
    for name, weight in tqdm(weights.items(), desc="loading", unit="tensor", delay=1, leave=False):
        param = params[name]
        try:
            adapter, own = adapters.get(name), rows(param)
            looks_at_all = adapter is not None and adapter.starts_from_base
            value = weight.read() if looks_at_all else weight.part(own.start, own.stop)
            # a copy where it becomes the parameter, which the file must not show through
            value = value.to(device=device, dtype=dtype, copy=param.is_meta and not is_quantized(param))
            if adapter is not None:
                value = adapter.start_from(value, adapter_dtype)
            if looks_at_all and is_sharded(param):
                value = value[own].clone()
            if is_quantized(param):
                value = quantize(value, param)
            else:
                _refuse_nonfinite(value)
        except ValueError as error:
            raise CheckpointError(f"{source}: {name} {error}; is the file damaged?") from error
        set_parameter(model, name, value)


def fill_with_zeros(model: nn.Module, *, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give the base parameters of `model` their memory, for weights that are read later."""
    for name, param in base_parameters(model).items():
        set_parameter(model, name, torch.zeros(local(param).shape, device=device, dtype=dtype))


def _refuse_nonfinite(value: Tensor) -> None:
    if not is_finite(value):
        raise ValueError("holds NaN or infinity")


def is_finite(value: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    return not value.numel() or bool(torch.stack(value.aminmax()).isfinite().all())  # makes no tensor of that size


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Give the parameter `name` its value: in place where it exists, as itself where it is on the meta device.

    Of one that is sharded, that is the value of its rows here.
    """
    param = model.get_parameter(name)
    if not param.is_meta:
        local(param.data).copy_(value)
        return
    value = with_rows(param.data, value)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=param.requires_grad))


def merged_weights(model: nn.Module, originals: Mapping[str, Weight] | None = None) -> dict[str, Weight]:
    """Return the weights with the adapters merged in and NF4 dequantised, each computed when it is read.

    `originals` by our names take the place of the weights that the model has in NF4.
    """

    def read(name: str, param: Tensor) -> Tensor:
        if name in biases:
            return local(biases[name].merged_bias().detach())
        base, own = None, rows(param)
        if originals is not None and is_quantized(param):
            base = originals[name].part(own.start, own.stop).to(device=param.device, dtype=param.dtype)
        if name in adapters:
            return adapters[name].merged_weight(base)
        return dequantize(local(param.detach())) if base is None else base

    def weight(name: str, param: Tensor) -> Weight:
        weight = Weight(param.dtype, tuple(param.shape), partial(read, name, param))
        beside = adapters[name].parameters() if name in adapters else ()
        sharded = next(filter(is_sharded, [param, *beside]), None)
        return weight if sharded is None else weight.of_shards(written_rows(param, sharded))

    adapters = {f"{name}.weight": module for name, module in mergeable_modules(model).items()}
    biases = changed_biases(model)
    return {name: weight(name, param) for name, param in base_parameters(model).items()}


def check_finite(model: nn.Module) -> None:
    """Raise SaveError when a trained parameter holds NaN or infinity."""
    trained = {name: local(param.detach()) for name, param in model.named_parameters() if param.requires_grad}
    broken = [name for name, param in trained.items() if not is_finite(param)]
    if broken:
        raise SaveError(
            f"not saved: {counted(len(broken), 'trained weight is', 'trained weights are')} NaN or infinite "
            f"({listed(broken)}); go back to an earlier checkpoint"
        )
