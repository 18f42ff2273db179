"""Compares what was written with the live model, weight by weight and tile by tile: no second model in memory.

Two questions. Does the file hold what was to be written? Each value must be the live one, or with an adapter the value
of its dtype that is nearest to the merged weight, which is recomputed in float32. And is the merged weight what was
trained? It is multiplied by random vectors of signs, and the live projection is applied to the same vectors, both in
float32: of two linear maps that differ, at least half of all such vectors show it (R. Freivalds, "Probabilistic
machines can use less running time", 1977).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import base_parameters, listed
from torchtune_lite.errors import CheckpointError
from torchtune_lite.kernels.nf4.linear import row_tiles
from torchtune_lite.peft import (
    Adapter,
    TrainedRows,
    changed_biases,
    is_quantized,
    mergeable_modules,
    rows_here,
    storage,
)
from torchtune_lite.utils import counted
from torchtune_lite.utils.sharding import as_lies, local, rows

Tiles = Iterable[tuple[slice, Tensor]]

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
NUM_PROBES = 8
REPEATED = 1e-6
"""The tolerance of a merged value beyond the nearest one, relative to the largest: float32 summed again."""
COMPUTED, COMPUTED_FAST = 1e-5, 1e-2
"""The tolerance of the products, relative to their size. Two ways to compute them come to 4e-7 in float32 (up to
28,672 inputs); TF32, which the user may have put in its place, has a thousandth of its precision."""


@dataclass(frozen=True)
class Comparison:
    """The number of weights compared, and of those with an adapter merged in.

    `base_error` is how far those that are quantised in the live model are from what was written in their place,
    relative to its size; None where they were written themselves.
    """

    num_weights: int
    num_merged: int
    base_error: float | None

    def __str__(self) -> str:
        text = counted(self.num_weights, "weight is as it was trained", "weights are as they were trained")
        if self.num_merged:
            text += f", {self.num_merged} of them with an adapter merged in"
        if self.base_error is not None:
            text += f"; the base has its original values; its NF4 values in training were {self.base_error:.1%} off"
        return text


@torch.no_grad()
def compare(
    model: nn.Module, weights: Mapping[str, Weight], originals: Mapping[str, Weight] | None = None
) -> Comparison:
    """Compare the live weights of `model` with the written `weights`, by our names; CheckpointError says what differs.

    `originals` are those that were written in the place of NF4 weights, as in `merged_weights`. Leaves `model` as it
    was and draws no random number.
    """
    adapters = {f"{name}.weight": module for name, module in mergeable_modules(model).items()}
    biases, params = changed_biases(model), base_parameters(model)
    problems, error, size = [], 0.0, 0.0
    for name, param in params.items():
        own, module = rows(param), adapters.get(name)
        written = weights[name].part(own.start, own.stop)
        merge = _Merge(module) if module is not None and not isinstance(module, TrainedRows) else None
        plain = biases[name].merged_bias() if name in biases else param.detach()
        tiles = _tiles(plain) if module is None else (merge or module).merged_tiles()
        if originals is not None and is_quantized(param):
            for tile, values in tiles:
                original = written[tile].to(values)
                error += (original - values).square().sum(dtype=torch.float32).item()
                size += original.square().sum(dtype=torch.float32).item()
            base = originals[name].part(own.start, own.stop).to(device=param.device, dtype=param.dtype)
            tiles = module.merged_tiles(base) if merge else _tiles(base)
        problem = _wrong_values(written, param.dtype, tiles, REPEATED if merge else 0.0)
        problem = problem or (merge and merge.problem())
        if problem:
            problems.append(f"{name} {problem}")
    if problems:
        are = "is" if len(problems) == 1 else "are"
        raise CheckpointError(f"{len(problems)} of {counted(len(params), 'weight')} {are} wrong: {listed(problems)}")
    return Comparison(len(params), len(adapters), (error / size) ** 0.5 if size else None)


def _tiles(weight: Tensor) -> Tiles:
    """Yield slices of the rows of a weight, plain or NF4, with their values."""
    weight = local(weight)
    return row_tiles(storage(weight), len(weight)) if weight.dim() > 1 else [(slice(None), weight)]


def _wrong_values(written: Tensor, dtype: torch.dtype, tiles: Tiles, slack: float) -> str | None:
    """Say how many values of `written` are not the nearest to `tiles` in `dtype`, and by how much the worst is not."""
    if written.dtype != dtype:
        return f"is {_name(written.dtype)}, not {_name(dtype)}"
    count, worst, bits = 0, torch.zeros(()), BITS[dtype.itemsize]
    for tile, expected in tiles:
        found, nearest = written[tile].to(expected.device), expected.to(dtype)
        if torch.equal(found.view(bits), nearest.view(bits)):  # four times as fast as comparing bfloat16
            continue
        off = _distance(found, expected) - _distance(nearest, expected)
        wrong = off[~(off <= slack * expected.abs().max())]
        if len(wrong):
            count, worst = count + len(wrong), torch.maximum(worst, wrong.max().cpu())  # NaN stays
    return f"has {count:,} of {counted(written.numel(), 'value')} wrong, by up to {worst.item():.2g}" if count else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _distance(values: Tensor, expected: Tensor) -> Tensor:
    return (values.float() - expected.float()).abs_()


class _Merge:
    """The products of random vectors with the merged weight of `module`, and by its forward pass."""

    def __init__(self, module: Adapter) -> None:
        self._module = module
        signs = torch.randint(0, 2, (NUM_PROBES, module.weight.shape[1]), generator=torch.Generator().manual_seed(0))
        self._probes = (2 * signs - 1).to(module.weight.device, torch.float32)
        self._products: list[Tensor] = []

    def merged_tiles(self) -> Tiles:
        """Yield the module's `merged_tiles`, each multiplied on the way."""
        for tile, values in self._module.merged_tiles():
            self._products.append(self._probes @ values.t())
            yield tile, values

    def problem(self) -> str | None:
        """Say how far the two are apart, once all tiles have been taken."""
        merged, live = torch.cat(self._products, dim=1), self._live()
        off, size = (y.square().mean().sqrt().item() for y in (merged - live, live))
        if off <= size * (COMPUTED if _is_exact(live.device) else COMPUTED_FAST):
            return None
        return f"was merged into a function other than the trained one: its products differ by {off / size:.2%}"

    def _live(self) -> Tensor:
        module, was_training = self._module, self._module.training
        params = rows_here(module)
        params |= {name: params[name].float() for name in module.adapter_params()}
        module.eval()  # without dropout
        try:
            with _Float32Products():
                products = functional_call(module, params, self._probes)
        finally:
            module.train(was_training)
        return products if module.bias is None else products - as_lies(module.merged_bias(), module.weight)


def _is_exact(device: torch.device) -> bool:
    """Return whether products of float32 are computed in float32."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("ieee", "none")


class _Float32Products(TorchFunctionMode):
    """Computes `F.linear` of float32 values with a weight of another dtype in float32, tile by tile."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear and args[0].dtype != args[1].dtype:
            x, weight = args
            return torch.cat([x @ tile.to(x.dtype).t() for _, tile in row_tiles([weight], len(weight))], dim=-1)
        return function(*args, **kwargs or {})
