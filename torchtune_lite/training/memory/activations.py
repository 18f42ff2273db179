"""The activations that a step keeps for its backward pass, recomputes, or moves to the host."""

from typing import Any

from torch import nn

from torchtune_lite.data import Batches
from torchtune_lite.errors import ConfigError
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.training.memory.offloading import offload_activations
from torchtune_lite.training.memory.step_memory import count_step
from torchtune_lite.training.memory.usage import free_memory
from torchtune_lite.utils import counted, get_logger

RESERVE = 0.1
"""Of the free memory, the share that `memory_budget: auto` leaves: kernels' own buffers, gaps between tensors."""
GB = 1e9


def set_activations(model: TransformerDecoder, settings: Any, batches: Batches, loss_fn: nn.Module) -> None:
    """Make the loaded `model` keep, recompute or offload activations as the keys of a recipe's `settings` say.

    enable_activation_checkpointing: True recomputes every layer; ac_mode: selective with ac_option: n, or full, does
    so where that is False, as in torchtune; memory_budget, `auto` or GB, chooses how many, for the largest micro-batch
    of `batches`. enable_activation_offloading: True moves what is kept to the host, on a GPU. What is chosen is logged
    in one line. ConfigError for keys that contradict each other, and for a number of GB that cannot be kept to.
    """
    model.activation_checkpointing = checkpointed_layers(model, settings)
    if settings.memory_budget is not None:
        if model.activation_checkpointing:
            raise ConfigError(
                "memory_budget chooses the layers to recompute; "
                "leave out enable_activation_checkpointing and ac_mode, or set memory_budget: null"
            )
        accumulates = settings.gradient_accumulation_steps > 1
        model.activation_checkpointing = layers_in_budget(
            model, settings.memory_budget, batches, loss_fn, accumulates=accumulates
        )
    if settings.enable_activation_offloading:
        device = next(model.parameters()).device
        if device.type == "cuda":
            offload_activations(model)
        else:
            get_logger().warning("enable_activation_offloading has no effect on %s; it is for a GPU", device.type)


def checkpointed_layers(model: TransformerDecoder, settings: Any) -> range:
    """Return the numbers of the layers that the settings name, as torchtune counts: each n-th, not the first."""
    num_layers, mode, every = len(model.layers), settings.ac_mode, settings.ac_option
    if mode not in (None, "full", "selective"):
        raise ConfigError(f"ac_mode: {mode!r} is not known; choose full, selective or null")
    if settings.enable_activation_checkpointing or mode == "full":
        if settings.enable_activation_checkpointing and mode == "selective":
            get_logger().warning("ac_mode has no effect beside enable_activation_checkpointing: True, all layers")
        return range(num_layers)
    if mode is None:
        return range(0)
    if type(every) is not int or every < 1:
        raise ConfigError(
            f"ac_option: {every!r} is not served; with ac_mode: selective, set a number n: each n-th layer"
        )
    return range(every - 1, num_layers, every)


def layers_in_budget(
    model: TransformerDecoder, budget: str | float, batches: Batches, loss_fn: nn.Module, *, accumulates: bool = False
) -> range:
    """Return the numbers of the layers to recompute, the fewest with which a step fits into `budget`, and logs them."""
    memory = count_step(model, loss_fn, batches.largest(), accumulates=accumulates)
    if budget == "auto":
        free = free_memory(next(model.parameters()).device)
        if free is None:
            raise ConfigError("memory_budget: auto cannot find out how much memory is free here; set a number of GB")
        limit = memory.weights + (1 - RESERVE) * free
    elif isinstance(budget, str) or budget <= 0:
        raise ConfigError(f"memory_budget: {budget!r} is not known; set auto, a number of GB above 0, or null")
    else:
        limit = budget * GB
    layers = range(memory.num_layers)
    fewest = next((n for n in range(len(layers) + 1) if memory.peak(n) <= limit), len(layers))
    need = f"a step takes about {memory.peak(fewest) / GB:.2f} GB of {limit / GB:.2f} GB (memory_budget: {budget})"
    if memory.peak(fewest) > limit and budget != "auto":
        raise ConfigError(f"with all layers recomputed {need}; lower batch_size or tokenizer.max_seq_len")
    log = get_logger()
    (log.warning if memory.peak(fewest) > limit else log.info)(
        "activations: %d of %s recomputed; %s", fewest, counted(len(layers), "layer"), need
    )
    return layers[:fewest]
