"""An adapter that is merged into the weights of its base as they are read, one at a time and in float32."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.checkpoint.formats.adapter import load_adapter
from torchtune_lite.checkpoint.formats.adapter_method import put_adapters
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import listed, set_parameter
from torchtune_lite.errors import ConfigError
from torchtune_lite.models import from_checkpoint
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.peft import AdaptedLinear, adapter_modules, changed_biases, mergeable_modules


def merged_base(checkpointer: Any, base: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights `base` of a checkpointer with its `adapter_checkpoint` merged in, each in its own dtype."""
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args).eval()
    layout = checkpointer.layout_of(model.config)
    put_adapters(model, checkpointer.adapter_checkpoint, layout)
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    of_projections = [name for name, module in adapter_modules(model).items() if isinstance(module, AdaptedLinear)]
    if others := [name for name in trained if not name.startswith(tuple(f"{each}." for each in of_projections))]:
        raise ConfigError(
            f"checkpointer.merge_adapter: {checkpointer.adapter_checkpoint} trains {listed(sorted(others))} besides "
            "projections; write the merged model with 'tune export --to hf', and start from that"
        )
    make_parameters(model)
    load_adapter(model, checkpointer.adapter_checkpoint, layout, base)
    merged = with_adapters(model, base)
    return {**base, **{name: weight.to(base[name].dtype) for name, weight in merged.items()}}


def make_parameters(model: nn.Module) -> None:
    """Give the parameters of adapters on the meta device their memory, in float32."""
    for adapter in adapter_modules(model).values():
        for name in adapter.adapter_params():
            set_parameter(adapter, name, torch.empty(adapter.get_parameter(name).shape, dtype=torch.float32))


def with_adapters(model: TransformerDecoder, base: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return those of the weights `base`, by our names, that the adapters of `model` change, merged, in float32."""

    def merged(name: str, merge: Callable[[], Tensor]) -> Tensor:
        with filled(model, {name: base[name]}):
            return merge()

    merges = {f"{name}.weight": module.merged_weight for name, module in mergeable_modules(model).items()}
    merges |= {name: module.merged_bias for name, module in changed_biases(model).items()}
    return {
        name: Weight(torch.float32, base[name].shape, partial(merged, name, merge)) for name, merge in merges.items()
    }


@contextmanager
def filled(model: nn.Module, weights: Mapping[str, Weight]) -> Iterator[None]:
    """Give parameters of a model on the meta device their values, in float32, for a block of code."""
    empty = {name: model.get_parameter(name) for name in weights}
    for name, weight in weights.items():
        set_parameter(model, name, weight.read().float())
    try:
        yield
    finally:
        for name, param in empty.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, param)
