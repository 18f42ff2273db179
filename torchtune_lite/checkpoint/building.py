"""A model by its node in a config: of the sizes of its checkpoint, and with the adapters of one that it starts from."""

import inspect
from typing import Any

import torch
from torch import nn

from torchtune_lite import config
from torchtune_lite.checkpoint.formats.adapter_method import SavedMethod, put_adapters
from torchtune_lite.models.builders import arguments_of, projections
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.peft import adapter_modules


def build_decoder(checkpointer: Any, node: Any) -> TransformerDecoder:
    """Build the shapes of a model, which `checkpointer.load` fills.

    Where it goes on from an `adapter_checkpoint` of projections, method, ranks and targets are those of that folder,
    whatever the node says of them.
    """
    parameters = inspect.signature(config.find(node["_component_"])).parameters
    method, arguments = None, {}
    if checkpointer.goes_on_from_adapter and "adapter" in parameters:
        sizes = DecoderConfig(**checkpointer.decoder_args)
        method = SavedMethod(checkpointer.adapter_checkpoint, checkpointer.layout_of(sizes), projections(sizes))
        arguments = arguments_of(method, method.targets) if method.targets else {}
    checkpointer.adapter_is_given = bool(arguments)
    with torch.device("meta"):
        model = config.instantiate(node, defaults=checkpointer.decoder_args, **arguments)
    if arguments:
        method.complete(model)
    return model


def put_saved_adapters(checkpointer: Any, model: nn.Module) -> None:
    """Put adapters on a plain `model`, without weights, as `adapter_checkpoint` has them, if there is one."""
    if checkpointer.goes_on_from_adapter and not adapter_modules(model):
        put_adapters(model, checkpointer.adapter_checkpoint, checkpointer.layout_of(model.config))
