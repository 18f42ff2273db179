"""The meaning of names in torchtune's configs that differ from this package's object of the same name."""

import inspect
from collections.abc import Container, Iterator
from typing import Any

from torchtune_lite.config.registry.lookup import find
from torchtune_lite.config.text.document import Document
from torchtune_lite.config.unsupported import ANY, unserved_family
from torchtune_lite.errors import ConfigError, warn

PARALLEL = {"data_parallel_replicate_dim": 1, "data_parallel_shard_dim": -1, "fsdp_reshard_after_forward": True}
"""torchtune's keys of how processes share a model, and their defaults; -1 stands for all, or all of a replica."""

LOSS = "torchtune_lite.modules.loss.LinearCrossEntropyLoss"

# Losses that are `LOSS` in a recipe that calls it: argument: the value with which they are the same function.
LOSSES: dict[str, dict[str, Any]] = {
    "torch.nn.CrossEntropyLoss": {
        "weight": None,
        "size_average": None,
        "ignore_index": -100,
        "reduce": None,
        "reduction": "mean",
        "label_smoothing": 0.0,
    },
    "torchtune.modules.loss.CEWithChunkedOutputLoss": {"num_output_chunks": ANY, "ignore_index": -100},
    "torchtune.modules.loss.LinearCrossEntropyLoss": {
        "num_output_chunks": ANY,
        "ignore_index": -100,
        "tp_enabled": False,
        "mask_pre_projection": ANY,
    },
}


def translate(document: Document, losses: list[str]) -> list[str]:
    """Put our objects and arguments in the place of torchtune's; return one line for each that has none.

    `losses` are the keys that hold a loss which the recipe calls with hidden states.
    """
    problems, without_effect = [], []
    for key in losses:
        if isinstance(document.values.get(key), str):
            document.values[key] = {"_component_": document.values[key]}
        node = document.values.get(key)
        theirs = node.get("_component_") if isinstance(node, dict) else None
        if not isinstance(theirs, str) or theirs not in LOSSES:
            continue
        same, node["_component_"] = LOSSES[theirs], LOSS
        for name in [name for name in node if name in same]:
            value = node.pop(name)
            if same[name] is ANY:
                without_effect.append(f"{key}.{name}")
            elif value != same[name]:
                problems.append(
                    f"{document.place((key, name))}: '{key}.{name}' of {theirs} is not served; leave it out, or write "
                    "a loss of your own (docs/components.md)"
                )
    for node in components_in(document.values):
        _quantize_frozen(node)
    _keep_last(document)
    for key, node in document.values.items():
        if isinstance(node, dict) and (problem := unserved_family(str(node.get("model_type")))):
            problems.append(f"{document.place((key, 'model_type'))}: '{key}.model_type': {problem}")
    if without_effect:
        warn(f"{document.name}: without effect here: {', '.join(without_effect)}")
    return problems


def share_out(document: Document, served: Container[str]) -> None:
    """Write torchtune's keys of how processes share a model as those of `parallel`, which come first, if it is served.

    torchtune's default is that all processes share one.
    """
    if "parallel" not in served:
        return
    given = {key: document.values.pop(key) for key in PARALLEL if key in document.values}
    replicas, shards = (given.get(key, default) for key, default in list(PARALLEL.items())[:2])
    meant: dict[str, Any] = {"data": "fsdp"} if "data_parallel_shard_dim" in given else {}
    if shards == 1:
        meant = {"data": "ddp"}
    elif replicas != 1:
        meant = {"data": "hsdp", "replicas": replicas}
    if (keeps := given.get("fsdp_reshard_after_forward")) is not None:
        meant["reshard_after_forward"] = keeps
    ours = document.values.get("parallel", {})
    if meant and isinstance(ours, dict):
        document.origins.setdefault(("parallel",), document.place((next(iter(given)),)))
        document.values["parallel"] = meant | ours


def _keep_last(document: Document) -> None:
    """Move `keep_last_n_checkpoints`, an argument of torchtune's checkpointers, to the recipe's keys."""
    key, node = "keep_last_n_checkpoints", document.values.get("checkpointer")
    if isinstance(node, dict) and str(node.get("_component_")).startswith("torchtune.") and key in node:
        document.origins.setdefault((key,), document.place(("checkpointer", key)))
        document.values.setdefault(key, node.pop(key))


def components_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the components in a value, those in components too."""
    if isinstance(value, dict) and "_component_" in value:
        yield value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in items:
        yield from components_in(each)


def _quantize_frozen(node: dict[str, Any]) -> None:
    """Set `quantize_frozen` as torchtune has it: `quantize_base` puts projections without an adapter in NF4 too."""
    path = node["_component_"]
    if not isinstance(path, str) or not path.startswith("torchtune.models."):
        return
    try:
        parameters = inspect.signature(find(path)).parameters
    except ConfigError:  # which the check of the component says with its place
        return
    if "quantize_frozen" in parameters and "quantize_base" in parameters:
        node.setdefault("quantize_frozen", node.get("quantize_base", parameters["quantize_base"].default))
