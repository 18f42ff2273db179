"""AdaLoRA: low-rank updates in the form of a singular value decomposition, whose ranks are pruned to a budget.

Zhang et al., arXiv 2303.10512. r rank; W [out, in], A [r, in], B [out, r], E [r, 1]. `rank_allocation` prunes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_lite.peft.frozen import linear
from torchtune_lite.peft.nf4 import storage
from torchtune_lite.peft.peft_file import HARMLESS, NUMBER, PREFIX, WHOLE, PeftFile, Projection, dropout_of
from torchtune_lite.peft.projections.adapted import AdaptedLinear
from torchtune_lite.peft.projections.lora import LoRALinear, merged_tiles
from torchtune_lite.utils import counted

A, B, E = "lora_A", "lora_B", "lora_E"
PARAMS = ("lora_a", "lora_b", "lora_e")


class AdaLoRA:
    """AdaLoRA, for `model.adapter`: projections start with `init_r` triplets and end with `target_r` on average.

    The update is scaled by `lora_alpha / init_r`. No triplet is pruned in the first `tinit` steps, and none after the
    last but `tfinal`; between them the budget falls with the cube of the steps that are left, every `deltaT` steps
    (section 3.3). None: a tenth and three tenths of the run's steps, which `total_step` counts and the run sets.
    `beta1` and `beta2` average the importance and its uncertainty; `orth_reg_weight` is that of the penalty that keeps
    A and B orthogonal.
    """

    def __init__(
        self,
        init_r: int = 12,
        target_r: int = 8,
        lora_alpha: float = 24,
        tinit: int | None = None,
        tfinal: int | None = None,
        deltaT: int = 1,  # noqa: N803 (PEFT's name)
        beta1: float = 0.85,
        beta2: float = 0.85,
        orth_reg_weight: float = 0.5,
        lora_dropout: float = 0.0,
    ) -> None:
        if not 1 <= target_r <= init_r:
            raise ValueError(f"target_r {target_r} must be at least 1 and at most init_r, {init_r}")
        if wrong := [name for name, value in (("beta1", beta1), ("beta2", beta2)) if not 0 < value < 1]:
            raise ValueError(f"{wrong[0]} must be between 0 and 1")
        if deltaT < 1 or orth_reg_weight < 0 or min(tinit or 0, tfinal or 0) < 0:
            raise ValueError("deltaT must be at least 1, and tinit, tfinal and orth_reg_weight at least 0")
        self.init_r, self.target_r, self.lora_alpha, self.dropout = init_r, target_r, lora_alpha, lora_dropout
        self.tinit, self.tfinal, self.delta_t = tinit, tfinal, deltaT
        self.beta1, self.beta2, self.orth_reg_weight = beta1, beta2, orth_reg_weight
        self.total_step: int | None = None
        self.resumed_total_step: int | None = None  # of the run that goes on

    def put(self, path: str, base: nn.Module) -> "AdaLoRALinear":
        """Put triplets on the projection `path`."""
        return AdaLoRALinear(base, self, self.init_r)


class AdaLoRALinear(AdaptedLinear):
    """A frozen projection with a trained update: `y = W x + bias + s · B (E ⊙ A dropout(x))`, s = alpha / init_r.

    E starts as zero, A and B as N(0, 0.02²), so that training starts at the base model. s stays as the ranks shrink,
    and has 1e-5 in its denominator as PEFT's does. `rank` is the number of triplets held, of which `mask` has those
    that are not pruned. `importance` has the mean and the uncertainty of each parameter's, and is None once `mask` is
    final.
    """

    peft_type = "ADALORA"

    def __init__(self, base: nn.Module, method: AdaLoRA, rank: int) -> None:
        super().__init__(base)
        self.method, self.rank, self.dropout = method, rank, nn.Dropout(method.dropout)
        alpha = method.lora_alpha if method.lora_alpha > 0 else method.init_r
        self.scaling = alpha / (method.init_r + 1e-5)
        self.init_adapter()

    def init_adapter(self, dtype: torch.dtype | None = None) -> None:
        """Make fresh triplets on the device of the base weight, in its dtype unless another is given."""
        made = {"dtype": dtype or self.weight.dtype, "device": self.weight.device}
        self.lora_a = nn.Parameter(torch.empty(self.rank, self.in_dim, **made).normal_(0, 0.02))
        self.lora_b = nn.Parameter(torch.empty(self.out_dim, self.rank, **made).normal_(0, 0.02))
        self.lora_e = nn.Parameter(torch.zeros(self.rank, 1, **made))
        self.mask = torch.ones(self.rank, dtype=torch.bool, device="cpu" if self.weight.is_meta else self.weight.device)
        self.importance: dict[str, tuple[Tensor, Tensor]] | None = {}

    def adapter_params(self) -> list[str]:
        """Return the names of the trained parameters within the module."""
        return list(PARAMS)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        y = linear(x, self.weight, self.bias)
        if not self.enabled:
            return y
        a, b, e = (each.to(x.dtype) for each in (self.lora_a, self.lora_b, self.lora_e))
        return y + (F.linear(F.linear(self.dropout(x), a * e), b) * self.scaling).to(y.dtype)

    def merged_tiles(self, base: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows of `W + s · B (E ⊙ A)` in float32, before they are rounded."""
        a = self.lora_a.detach().float() * self.lora_e.detach().float()
        return merged_tiles(storage(self.weight if base is None else base), a, self.lora_b.detach(), self.scaling)

    @property
    def live(self) -> Tensor:
        """Which triplets are not pruned, or are again trained since: bool `[r]`."""
        if self.lora_e.is_meta:
            return torch.ones(self.rank, dtype=torch.bool)
        return self.mask.to(self.lora_e.device) | (self.lora_e.detach().flatten() != 0)

    def as_lora(self, rank: int | None = None) -> nn.Module:
        """Return a LoRA of the same function, its alpha its rank: that of the live triplets, or `rank` with zeros.

        Without live triplets and `rank` it is a plain projection.
        """
        live = self.live
        if rank is None and not live.any():
            with torch.device("meta"):
                plain = nn.Linear(self.in_dim, self.out_dim, bias=self.bias is not None)
            plain.weight, plain.bias = self.weight, self.bias
            return plain
        a = (self.scaling * self.lora_e.detach() * self.lora_a.detach())[live]
        return LoRALinear.of_factors(self, a, self.lora_b.detach()[:, live], rank)

    def training_state(self) -> dict[str, Tensor]:
        """Return the pruned triplets, which a file lacks and the penalty still sees, the mask, and the importances."""
        pruned = ~self.live
        state = {"mask": self.mask, "live": self.live, "a": self.lora_a[pruned], "b": self.lora_b[:, pruned]}
        state["final"] = torch.tensor(self.importance is None)
        state["total_step"] = torch.tensor(self.method.total_step or 0)
        for name, (mean, uncertainty) in (self.importance or {}).items():
            state |= {f"{name}.mean": mean, f"{name}.uncertainty": uncertainty}
        return {name: value.detach() for name, value in state.items()}

    @torch.no_grad()
    def restore_training(self, state: Mapping[str, Tensor]) -> None:
        """Take what `training_state` returned."""
        state = {name: value.to(self.weight.device) for name, value in state.items()}
        self.mask, pruned = state["mask"], ~state["live"]
        self.lora_a[pruned], self.lora_b[:, pruned] = state["a"], state["b"]
        self.method.resumed_total_step = int(state["total_step"])
        names = [name for name in PARAMS if f"{name}.mean" in state]
        importance = {name: (state[f"{name}.mean"], state[f"{name}.uncertainty"]) for name in names}
        self.importance = None if state["final"] else importance


def _is_rank_pattern(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else () if value is None else [None]
    return all(isinstance(each, list) and all(isinstance(flag, bool) for flag in each) for each in lists)


class AdaLoRAFile(PeftFile):
    """Of AdaLoRA: the triplets that are not pruned, and in `rank_pattern` which of the first ones these are."""

    peft_type = "ADALORA"
    names = {A: "lora_a", B: "lora_b", E: "lora_e"}
    compared = {"init_r": WHOLE, "lora_alpha": NUMBER}
    compared |= {"rank_pattern": ("lists of true or false by names", _is_rank_pattern)}
    harmless = HARMLESS | {
        *("r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
        *("lora_dropout", "megatron_core", "ensure_weight_tying", "init_lora_weights", "qalora_group_size"),
        "trainable_token_indices",
    }

    def tensors_of(self, projection: Projection) -> dict[str, Tensor]:
        """Return the triplets that are not pruned."""
        [adapter] = projection.parts
        live = adapter.live
        return {A: adapter.lora_a[live], B: adapter.lora_b[:, live], E: adapter.lora_e[live]}

    def expected(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return tensors of the shapes that a file must have: of the ranks of its `rank_pattern`."""
        ranks = {each.path: sum(_flags(config, each.path)) for each in adapted}
        return {
            f"{PREFIX}{each.path}.{name}": torch.empty(shape, device="meta")
            for each in adapted
            for name, shape in {
                A: (ranks[each.path], each.parts[0].in_dim),
                B: (each.parts[0].out_dim, ranks[each.path]),
                E: (ranks[each.path], 1),
            }.items()
        }

    def assigned(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], values: Mapping[str, Tensor], source: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each live tensor with its value: those of a file where its triplets were, E zero in their gaps."""
        for each in adapted:
            [adapter] = each.parts
            a, b, e = (values[f"{PREFIX}{each.path}.{name}"] for name in (A, B, E))
            flags = _flags(config, each.path)
            there = torch.tensor(flags) if len(flags) == adapter.rank else torch.ones(adapter.rank, dtype=torch.bool)
            full_a, full_b, full_e = (param.clone() for param in (adapter.lora_a, adapter.lora_b, adapter.lora_e))
            full_a[there], full_b[:, there] = a.to(full_a), b.to(full_b)
            full_e.zero_()[there] = e.to(full_e)
            yield from ((adapter.lora_a, full_a), (adapter.lora_b, full_b), (adapter.lora_e, full_e))

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of an `AdaLoraConfig`."""
        method = adapted[0].parts[0].method
        patterns = {f"{each.path}.{E}": _padded(each.parts[0].live.tolist(), method.init_r) for each in adapted}
        return {
            "init_r": method.init_r,
            "target_r": method.target_r,
            "lora_alpha": method.lora_alpha,
            "lora_dropout": method.dropout,
            "tinit": method.tinit or 0,
            "tfinal": method.tfinal or 0,
            "deltaT": method.delta_t,
            "beta1": method.beta1,
            "beta2": method.beta2,
            "orth_reg_weight": method.orth_reg_weight,
            "total_step": method.total_step or 1 + (method.tinit or 0) + (method.tfinal or 0),
            "rank_pattern": None if all(all(flags) for flags in patterns.values()) else patterns,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return AdaLoRA and the ranks at the start and on average at the end."""
        return "AdaLoRA", f", rank {config['init_r']} pruned to {config['target_r']}, alpha {config['lora_alpha']:g}"

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where a config means another function than these adapters: by rank or scale."""
        method, problems = adapted[0].parts[0].method, []
        for name in ("init_r", "lora_alpha"):
            if config[name] != (ours := getattr(method, name)):
                problems.append(f"{name} is {config[name]}, the model's is {ours}")
        ranks = {each.path: (len(_flags(config, each.path)), each.parts[0].rank) for each in adapted}
        if not problems and (wrong := [path for path, (given, ours) in ranks.items() if ours > given]):
            problems.append(f"rank_pattern of {wrong[0]} has {counted(ranks[wrong[0]][0], 'value')}, not init_r")
        return problems

    def placed(
        self, config: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> Callable[[str, nn.Module], AdaLoRALinear]:
        """Return `put(path, base)`, which puts on a projection as many triplets as the file has for it."""
        numbers = {
            name: config[name]
            for name in ("target_r", "deltaT", "beta1", "beta2", "orth_reg_weight", "lora_alpha")
            if config.get(name) is not None
        }
        method = AdaLoRA(config["init_r"], **numbers, lora_dropout=dropout_of(config, "lora_dropout"))
        method.total_step = config.get("total_step")
        return lambda path, base: AdaLoRALinear(base, method, shapes[path][A][0])


def _flags(config: Mapping[str, Any], path: str) -> list[bool]:
    """Return which of the first triplets of a projection a file has."""
    return (config.get("rank_pattern") or {}).get(f"{path}.{E}", [True] * config["init_r"])


def _padded(flags: list[bool], length: int) -> list[bool]:
    return flags + [False] * (length - len(flags))
