"""LoRA and DoRA in PEFT's files: `LoraConfig`, A, B and the magnitudes.

A matrix that transformers has fused (q, k and v of Phi) has one adapter there. Those of its parts, of rank r each, are
one with the A stacked and the B as blocks, of the sum of the ranks; an adapter of PEFT's own gives each part the same A
and its rows of B. Both are exact.

An adapter that has taken a part of its base (`init_lora_weights: pissa`) is written as one of twice the rank on the
base as it is: below its A and beside its B stand those of the start, B's with the other sign.
"""

import math
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.peft.adapter import Adapter
from torchtune_lite.peft.nf4 import dequantize
from torchtune_lite.peft.peft_file import (
    ALLOWED,
    HARMLESS,
    NUMBER,
    PREFIX,
    SWITCH,
    WHOLE,
    PeftFile,
    Projection,
    dropout_of,
    is_expression,
    of_module,
)
from torchtune_lite.peft.projections.dora import DoRALinear
from torchtune_lite.peft.projections.lora import LoRALinear
from torchtune_lite.utils.sharding import is_sharded, local, whole

A, B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
OTHER_BASE = (
    "which changed the base weights; save it in PEFT with path_initial_model_for_weight_conversion, for an adapter of "
    "the base as it is"
)
Parts = Iterator[tuple[LoRALinear, Tensor, Tensor, Tensor | None]]


class LoRAFile(PeftFile):
    """Of LoRA, rsLoRA and DoRA, and of the starts from the base."""

    peft_type = "LORA"
    names = {A: "lora_a.weight", B: "lora_b.weight", MAGNITUDE: "magnitude"}
    compared = {"r": WHOLE, "lora_alpha": NUMBER, "use_rslora": SWITCH, "use_dora": SWITCH}
    patterns = {"rank_pattern": WHOLE, "alpha_pattern": NUMBER}
    harmless = HARMLESS | {
        *("lora_dropout", "megatron_core", "ensure_weight_tying", "trainable_token_indices"),
        *("qalora_group_size",),  # of use_qalora
        *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # of init_lora_weights
    }
    allowed = ALLOWED | {"init_lora_weights": (True, "gaussian", "orthogonal", "eva")}

    def tensors_of(self, projection: Projection) -> dict[str, Tensor]:
        """Return A and B of the change of the base's own weight, and the magnitudes."""
        adapters = projection.adapters
        if len(projection.parts) == 1:
            tensors = dict(zip((A, B), adapters[0].update_factors(), strict=True))
            return tensors | ({MAGNITUDE: adapters[0].magnitude} if adapters[0].use_dora else {})
        factors = {part: tuple(map(whole, part.update_factors())) for part in adapters}
        blocks = [
            factors[part][1] if part in factors else torch.zeros(part.weight.shape[0], 0, device=part.weight.device)
            for part in projection.parts
        ]
        tensors = {A: torch.cat([a for a, _ in factors.values()]), B: torch.block_diag(*blocks)}
        if adapters[0].use_dora:  # a part without an adapter keeps the norms of its rows
            parts = projection.parts
            norms = [whole(part.magnitude) if part in adapters else _row_norms(part, tensors[A]) for part in parts]
            tensors[MAGNITUDE] = torch.cat(norms)
        return tensors

    def expected(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return tensors of the shapes that a file must have; of a fused matrix its rank may be that of one part."""
        expected = self.tensors(adapted)
        for each in adapted:
            a, b = (f"{PREFIX}{each.path}.{name}" for name in (A, B))
            if len(each.parts) > 1 and a in given and given[a].shape[:1] == (each.adapters[0].update_rank,):
                expected[a], expected[b] = expected[a][: given[a].shape[0]], expected[b][:, : given[a].shape[0]]
        return expected

    def assigned(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], values: Mapping[str, Tensor], source: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each live tensor with its value in a file; CheckpointError names `source`."""
        for part, a, b, norms in _parts(adapted, values, source):
            yield part.lora_a.weight, a[: part.rank]
            yield part.lora_b.weight, b[:, : part.rank]
            if norms is not None:
                yield part.magnitude, norms

    def read_start(self, adapted: Sequence[Projection], values: Mapping[str, Tensor], source: str) -> None:
        """Give adapters the start that a saved one had: not computed a second time, and the same on any machine."""
        for part, a, b, _ in _parts(adapted, values, source):
            if part.init_lora_weights is not None:
                part.start = a[-part.rank :], -b[:, -part.rank :] if part.keeps_rest else b

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a `LoraConfig`, read off the modules.

        Rank and alpha are the most frequent ones; a module that differs stands in `rank_pattern` or `alpha_pattern`.
        """
        adapters = [adapter for projection in adapted for adapter in projection.adapters]
        ranks, alphas = {each.path: _rank(each) for each in adapted}, {each.path: _alpha(each) for each in adapted}
        [(rank, _)], [(alpha, _)] = (Counter(each.values()).most_common(1) for each in (ranks, alphas))
        return {
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": max(adapter.dropout.p for adapter in adapters),
            "rank_pattern": {path: each for path, each in ranks.items() if each != rank},
            "alpha_pattern": {path: each for path, each in alphas.items() if each != alpha},
            "use_rslora": adapters[0].use_rslora,
            "use_dora": any(adapter.use_dora for adapter in adapters),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return LoRA or DoRA, and rank and alpha."""
        return "DoRA" if config.get("use_dora") else "LoRA", f", rank {config['r']}, alpha {config['lora_alpha']:g}"

    def unserved(self, config: Mapping[str, Any]) -> list[str]:
        """Name the fields whose values change what PEFT computes, and say what to do."""
        found = super().unserved({key: value for key, value in config.items() if key != "init_lora_weights"})
        if init := self.changing(config).get("init_lora_weights"):
            return [f"init_lora_weights is {init}, {OTHER_BASE}", *found]
        return found

    def malformed(self, config: Mapping[str, Any]) -> list[str]:
        """Name the fields whose values are not of their kind, and the keys and values of patterns."""
        problems = super().malformed(config)
        for key, (kind, is_of_kind) in self.patterns.items():
            pattern = {} if config.get(key) is None else config[key]
            if not isinstance(pattern, dict):
                problems.append(f"{key} is {reprlib.repr(pattern)}, not a mapping")
                continue
            problems += [
                f"{key} has {reprlib.repr(name)}: {reprlib.repr(value)}, not an expression for names and {kind}"
                for name, value in pattern.items()
                if not (is_of_kind(value) and is_expression(name))
            ]
        return problems

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where a config means another function than these adapters: by rank, scale or DoRA."""
        problems = []
        use_dora = any(adapter.use_dora for each in adapted for adapter in each.adapters)
        if bool(config.get("use_dora")) != use_dora:
            problems.append(f"use_dora is {bool(config.get('use_dora'))}, the model's is {use_dora}")
        seen = set()
        for each in adapted:
            rank = of_module(config.get("rank_pattern"), each.path, config["r"])
            alpha = of_module(config.get("alpha_pattern"), each.path, config["lora_alpha"])
            alpha *= math.sqrt(rank) if config.get("use_rslora") else 1
            one = each.adapters[0]  # of a fused matrix: its parts may have the rank together, or each
            ranks = {_rank(each), one.update_rank}
            if rank not in ranks:
                seen.add(f"r is {rank}, the model's is {' or '.join(map(str, sorted(ranks)))}")
            elif not math.isclose(alpha / rank, one.scaling, rel_tol=1e-6):
                by = " by use_rslora" if config.get("use_rslora") else ""
                seen.add(f"lora_alpha is {alpha:.9g}{by}, the model's is {one.scaling * rank:.9g}")
        return problems + sorted(seen)

    def placed(
        self, config: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> Callable[[str, nn.Module], Adapter]:
        """Return `put(path, base)`; each part of a fused matrix gets an adapter of the rank of the whole matrix."""
        kind = DoRALinear if config.get("use_dora") else LoRALinear

        def put(path: str, base: nn.Module) -> LoRALinear:
            alpha = of_module(config.get("alpha_pattern"), path, config["lora_alpha"])
            dropout, use_rslora = dropout_of(config, "lora_dropout"), bool(config.get("use_rslora"))
            return kind.from_linear(base, shapes[path][A][0], alpha, dropout, use_rslora=use_rslora)

        return put

    def check(self, adapted: Sequence[Projection], merge_into: str) -> None:
        """Raise ConfigError for LoftQ on the original base, and for parts of a fused matrix of different scales."""
        for each in adapted:
            if merge_into == "original" and any(part.init_lora_weights == "loftq" for part in each.adapters):
                raise ConfigError(
                    "checkpointer.merge_into: original adds what init_lora_weights: loftq makes up for to a base that "
                    "has lost nothing; set merge_into: quantized"
                )
            if not all(math.isclose(part.scaling, each.adapters[0].scaling) for part in each.adapters):
                raise ConfigError(
                    f"{each.path} is one matrix in the checkpoint, and the adapters of its parts differ in their "
                    "scale; make rank_pattern and alpha_pattern agree on them"
                )


def _rank(projection: Projection) -> int:
    """Return the rank of all parts together, where one matrix B has theirs as blocks."""
    return sum(part.update_rank for part in projection.adapters)


def _alpha(projection: Projection) -> float:
    """Return the alpha with which the rank of all together gives the scaling of each."""
    one, *others = projection.adapters
    if others and one.use_rslora:
        return one.scaling * math.sqrt(_rank(projection))
    return sum(part.update_alpha for part in projection.adapters)


def _row_norms(plain: nn.Module, like: Tensor) -> Tensor:
    weight = plain.weight
    norms = dequantize(local(weight)).float().norm(dim=1).to(like.dtype)
    return whole(type(weight).from_local(norms, weight.device_mesh, weight.placements)) if is_sharded(weight) else norms


def _parts(adapted: Sequence[Projection], values: Mapping[str, Tensor], source: str) -> Parts:
    """Yield each adapter with the A and B of its update, and its magnitudes, in a file."""
    for projection in adapted:
        a, b, magnitude = (values.get(f"{PREFIX}{projection.path}.{name}") for name in (A, B, MAGNITUDE))
        rows = [part.weight.shape[0] for part in projection.parts]
        magnitudes = [None] * len(rows) if magnitude is None else magnitude.split(rows)
        first, rest = 0, b.clone()
        for part, b_rows, rest_rows, norms in zip(
            projection.parts, b.split(rows), rest.split(rows), magnitudes, strict=True
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
