"""Which projections of a model carry an adapter, and of which rank and alpha, by the fields of PEFT's `LoraConfig`.

A projection may be named as it is here (`layers.0.attn.q_proj`) or as in a Llama of transformers
(`model.layers.0.self_attn.q_proj`), whatever the family; one that some families have fused has that name, too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torchtune_lite.errors import did_you_mean

ALL_LINEAR = "all-linear"
OUTPUT = "output"
LAYER = re.compile(r"layers\.(\d+)\.(.*)")
THEIRS = {
    "attn.q_proj": ("self_attn.q_proj", "self_attn.qkv_proj"),
    "attn.k_proj": ("self_attn.k_proj", "self_attn.qkv_proj"),
    "attn.v_proj": ("self_attn.v_proj", "self_attn.qkv_proj"),
    "attn.output_proj": ("self_attn.o_proj",),
    "mlp.w1": ("mlp.gate_proj", "mlp.gate_up_proj"),
    "mlp.w2": ("mlp.down_proj",),
    "mlp.w3": ("mlp.up_proj", "mlp.gate_up_proj"),
}
"""Names of projections within a layer: ours, and those of a Llama in transformers, by itself or in a fused matrix."""


class Shape(NamedTuple):
    """The rank and the alpha of one adapter."""

    rank: int
    alpha: float


def choose(
    paths: Sequence[str],
    target_modules: str | Sequence[str],
    rank: int,
    alpha: float,
    *,
    layers_to_transform: int | Sequence[int] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> dict[str, Shape]:
    """Choose those of the projections `paths` that carry an adapter, each with its rank and alpha.

    `target_modules` are names, each the last part of a projection's or more of it; or `all-linear`, all but the output;
    or a regular expression for the whole name. `layers_to_transform` leaves the other layers out.
    `rank_pattern` and `alpha_pattern` map regular expressions for the end of a name to what takes the place of `rank`
    or `alpha`; the first that fits counts. ValueError for a name, a layer or an expression that fits no projection.
    """
    if target_modules == ALL_LINEAR:
        chosen = [path for path in paths if path != OUTPUT]
    elif isinstance(target_modules, str):
        chosen = _matching("target_modules", target_modules, paths, whole=True)
    else:
        found = {path for name in target_modules for path in _matching("target_modules", re.escape(name), paths)}
        chosen = [path for path in paths if path in found]
    if layers_to_transform is not None:
        chosen = _in_layers(chosen, layers_to_transform)
    ranks = _by_path("rank_pattern", rank_pattern, chosen)
    alphas = _by_path("alpha_pattern", alpha_pattern, chosen)
    for key, given in (("lora_rank", [rank]), ("rank_pattern", ranks.values())):
        if wrong := [each for each in given if not isinstance(each, int) or each < 1]:
            raise ValueError(f"{key} {wrong[0]!r} must be a whole number of at least 1")
    return {path: Shape(ranks.get(path, rank), alphas.get(path, alpha)) for path in chosen}


def names(path: str) -> tuple[str, ...]:
    """Return all names of the projection that is called `path` here."""
    if path == OUTPUT:
        return path, "lm_head"
    number, within = LAYER.fullmatch(path).groups()
    return path, *(f"model.layers.{number}.{theirs}" for theirs in THEIRS[within])


def _matching(key: str, expression: str, paths: Sequence[str], whole: bool = False) -> list[str]:
    """Return the projections that an expression names, whole or by the end of a name; ValueError where it is none."""
    try:
        matches = re.compile(expression if whole else rf"(.*\.)?({expression})").fullmatch
    except re.error as error:
        raise ValueError(f"{key} has {expression!r}, which is not a regular expression: {error}") from error
    if found := [path for path in paths if any(map(matches, names(path)))]:
        return found
    known = sorted({name.rpartition(".")[2] for path in paths for name in names(path)})
    problem = f"{key} has {_plain(expression)!r}, which names no projection"
    raise ValueError(f"{problem}{did_you_mean(_plain(expression), known)}; there are {', '.join(known)}")


def _in_layers(paths: Sequence[str], layers: int | Sequence[int]) -> list[str]:
    numbers = {path: int(LAYER.fullmatch(path)[1]) for path in paths if path != OUTPUT}
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if unknown := [layer for layer in wanted if layer not in numbers.values()]:
        there = f"the layers with such a projection are 0 to {max(numbers.values())}" if numbers else "no layer has one"
        raise ValueError(f"layers_to_transform has {unknown[0]!r}; {there}")
    return [path for path in paths if path == OUTPUT or numbers[path] in wanted]


def _by_path(key: str, pattern: Mapping[str, Any] | None, paths: Sequence[str]) -> dict[str, Any]:
    """Return what a pattern gives for each projection that it names."""
    given: dict[str, Any] = {}
    for expression, value in (pattern or {}).items():
        for path in _matching(key, expression, paths):
            given.setdefault(path, value)
    return given


def _plain(expression: str) -> str:
    return expression.replace("\\", "")
