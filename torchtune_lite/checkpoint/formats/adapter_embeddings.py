"""What stands of the embedding and of an output of its own in a folder of PEFT's, beside the adapters.

Rows of some tokens are `<HF module>.token_adapter.trainable_tokens_delta`, the new values, of the tokens in
`trainable_token_indices`. Matrices that are trained whole are `<HF module>.weight`, of the modules in
`modules_to_save`; a tied one is written as both, since PEFT would else leave the output as it was.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.models import grow_embeddings
from torchtune_lite.peft import FILES, MERGE, PREFIX, TrainedRows, adapter_modules, train_tokens

TOKENS, WHOLE = "trainable_token_indices", "modules_to_save"
DELTA = "token_adapter.trainable_tokens_delta"
OURS = {"embed_tokens": "tok_embeddings", "lm_head": "output"}
"""The last parts of names in transformers, and our modules."""


def embedding_tensors(model: nn.Module, layout: HFLayout) -> dict[str, Tensor]:
    """Return what of the embedding and the output is trained beside adapters, by PEFT's names."""
    rows, whole = _trained(model)
    tensors = {_path(theirs, layout) + f".{DELTA}": module.rows for theirs, module in rows.items()}
    return tensors | {_path(theirs, layout) + ".weight": weight for theirs, weight in whole.items()}


def embedding_fields(model: nn.Module) -> dict[str, Any]:
    """Return the fields of an adapter_config.json that tell of it."""
    rows, whole = _trained(model)
    indices = {theirs: list(module.indices) for theirs, module in rows.items()}
    fields: dict[str, Any] = {WHOLE: list(whole) or None}
    if indices:
        fields[TOKENS] = indices["embed_tokens"] if model.config.tie_word_embeddings else indices
    return fields


def embedding_problems(config: Mapping[str, Any]) -> list[str]:
    """Return where those fields are malformed, or name other modules."""
    problems, indices, whole = [], config.get(TOKENS) or None, config.get(WHOLE)
    lists = indices.values() if isinstance(indices, Mapping) else [] if indices is None else [indices]
    if not all(map(_are_tokens, lists)) or (isinstance(indices, Mapping) and set(indices) - set(OURS)):
        problems.append(f"{TOKENS} is {reprlib.repr(indices)}, not a list of tokens, or those of {' and '.join(OURS)}")
    if whole and not (isinstance(whole, list) and all(isinstance(name, str) and _last(name) in OURS for name in whole)):
        problems.append(f"{WHOLE} is {reprlib.repr(whole)}, which is not served; {MERGE}")
    return problems


def embedding_misfits(config: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return where those fields, which have no problems, tell of something else than what `model` trains."""
    rows, whole = _trained(model)
    ours = {theirs: list(module.indices) for theirs, module in rows.items()}
    problems = []
    if _by_module(config.get(TOKENS)) != ours:
        given = reprlib.repr(config.get(TOKENS))
        problems.append(f"{TOKENS} is {given}, the model trains {_said(ours)}; {MERGE}")
    if (given := _whole(config)) != set(whole):
        tied = model.config.tie_word_embeddings and given == {"embed_tokens"}
        why = ", whose output is the embedding and was not trained with it" if tied and whole else ""
        problems.append(
            f"{WHOLE} is {reprlib.repr(config.get(WHOLE))}, the model's is {list(whole) or None}{why}; {MERGE}"
        )
    return problems


def put_embeddings(
    model: nn.Module, indices: Mapping[str, list[int]], config: Mapping[str, Any], weights: Mapping[str, Weight]
) -> None:
    """Let a frozen model without weights train the rows `indices`, and what `config` has whole; it may have to grow."""
    whole = _whole(config)
    names = {f"{theirs}.weight" for theirs in whole}
    sizes = [weight.shape[0] for name, weight in weights.items() if name.endswith(tuple(names))] if whole else []
    grow_embeddings(model, max([*sizes, *(max(each) + 1 for each in indices.values())], default=0))
    train_tokens(model, indices.get("embed_tokens", ()), indices.get("lm_head", ()))
    for theirs in whole:
        model.get_submodule(OURS[theirs]).weight.requires_grad_(True)


def token_indices(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the tokens whose rows an adapter trains, for each of `OURS`, by a config of any method."""
    indices = FILES[config["peft_type"]].token_indices(config)
    return {_last(name): tokens for name, tokens in _by_module(indices).items()}


def _trained(model: nn.Module) -> tuple[dict[str, TrainedRows], dict[str, Tensor]]:
    """Return the modules with trained rows beside adapters, and the weights trained whole, by the names in `OURS`."""
    if all(isinstance(module, TrainedRows) for module in adapter_modules(model).values()):
        return {}, {}  # they are the adapter themselves
    modules = {theirs: model.get_submodule(ours) for theirs, ours in OURS.items()}
    rows = {theirs: module for theirs, module in modules.items() if isinstance(module, TrainedRows)}
    weights = {theirs: module.weight for theirs, module in modules.items() if theirs not in rows}
    return rows, {theirs: weight for theirs, weight in weights.items() if weight.requires_grad}


def _path(theirs: str, layout: HFLayout) -> str:
    return PREFIX + layout.module_path(f"{OURS[theirs]}.weight")


def _by_module(indices: Any) -> dict[str, list[int]]:
    """Return tokens by the modules whose rows they are: those of the embedding, where a list does not say."""
    return dict(indices or {}) if isinstance(indices or {}, Mapping) else {"embed_tokens": indices}


def _whole(config: Mapping[str, Any]) -> set[str]:
    return {_last(name) for name in config.get(WHOLE) or ()}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _are_tokens(value: Any) -> bool:
    are_numbers = isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 31 for each in value)
    return are_numbers and 0 < len(value) == len(set(value))


def _said(indices: Mapping[str, list[int]]) -> str:
    return reprlib.repr(dict(indices)) if indices else "no rows alone"
