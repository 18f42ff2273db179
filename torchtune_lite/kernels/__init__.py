"""The fast paths: what each computes in place of a plain function of `modules`, and how to switch it off.

| path | in place of | where it is taken | off |
|---|---|---|---|
| fused_lora | transformer.project | projections that carry plain LoRA | model.fused_lora: False |
| fused_mlp | transformer.gated_mlp | a feed-forward whose projections all do | model.fused_lora: False |
| varlen_attention | attention.attention | packed sequences in 16 bits, Ampere or later, torch 2.10 or later | |
| math_attention | attention.attention | 16 bits, short texts, CPU | |
| rms_norm | norm.rms_norm | CPU; torch's kernel elsewhere | |
| rotary | rope.rotate | everywhere but in torch.compile | |
| native_norm | norm.rms_norm | inference on a CPU with a compiler | TORCHTUNE_LITE_NATIVE=0 |
| native_rotary | rope.rotate | the same | the same |
| native_cache | kv_cache.cached_attention | the same, single new tokens | the same |
| batched_cache | kv_cache.cached_attention | elsewhere, several single new tokens | |
| int8, int8_mlp | transformer.project, transformer.gated_mlp | int8 weights, CPU with a compiler | the same |
| nf4.cpu, nf4.triton | the loops of nf4.codec | CPU with a compiler; GPU with Triton | TORCHTUNE_LITE_NATIVE=0 (CPU) |

`TORCHTUNE_LITE_PLAIN=fused_mlp,rotary` switches paths off by name, `TORCHTUNE_LITE_PLAIN=all` all that stand above
nf4's; so does `with plain("rotary")` in code. Each is tested for equality with the plain function, and is left out
where that function was edited, so that an edit runs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.torch_version import TorchVersion

from torchtune_lite.kernels import (
    batched_cache,
    fused_lora,
    fused_mlp,
    math_attention,
    rms_norm,
    rotary,
    varlen_attention,
)
from torchtune_lite.kernels.int8 import linear as int8
from torchtune_lite.kernels.native import passes
from torchtune_lite.modules import attention, kv_cache, norm, rope, transformer
from torchtune_lite.modules.replaceable import digest
from torchtune_lite.utils import get_logger

__all__ = ["FAST_PATHS", "plain"]

FAST_PATHS: dict[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "int8": (transformer.project, int8.project, "96cf5503a7a4"),
    "int8_mlp": (transformer.gated_mlp, int8.gated_mlp, "387885521ed4"),
    "fused_lora": (transformer.project, fused_lora.project, "96cf5503a7a4"),
    "fused_mlp": (transformer.gated_mlp, fused_mlp.gated_mlp, "387885521ed4"),
    "varlen_attention": (attention.attention, varlen_attention.attention, "8472784cf5fd"),
    "math_attention": (attention.attention, math_attention.attention, "8472784cf5fd"),
    "native_norm": (norm.rms_norm, passes.rms_norm, "ab114459e2cc"),
    "rms_norm": (norm.rms_norm, rms_norm.rms_norm, "ab114459e2cc"),
    "native_rotary": (rope.rotate, passes.rotate, "907bd725d38d"),
    "rotary": (rope.rotate, rotary.rotate, "907bd725d38d"),
    "native_cache": (kv_cache.cached_attention, passes.cached_attention, "f65c876012bb"),
    "batched_cache": (kv_cache.cached_attention, batched_cache.cached_attention, "f65c876012bb"),
}
"""By name: the plain function, the faster one, and the `digest` of the body that the faster one was written for."""

VARIABLE = "TORCHTUNE_LITE_PLAIN"

# before torch 2.12, its compiler loses the gradient of an output of an autograd function that was changed in place
_off_in_compile = {"fused_lora", "fused_mlp", "rms_norm"} if torch.__version__ < TorchVersion("2.12") else set()
_off = set(os.environ.get(VARIABLE, "").replace(",", " ").split())


@contextmanager
def plain(*names: str) -> Iterator[None]:
    """Switch off the fast paths named, or all, for a block of code."""
    unknown = set(names) - FAST_PATHS.keys()
    assert not unknown, unknown
    before = set(_off)
    _off.update(names or ["all"])
    try:
        yield
    finally:
        _off.clear()
        _off.update(before)


def _switched(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    def path(*args: Any, **kwargs: Any) -> Any:
        is_off = name in _off or "all" in _off or (name in _off_in_compile and torch.compiler.is_compiling())
        return NotImplemented if is_off else compute(*args, **kwargs)

    return path


for _name, (_function, _compute, _written_for) in FAST_PATHS.items():
    if digest(_function.plain) in (_written_for, None):
        _function.paths.append(_switched(_name, _compute))
    else:
        get_logger().info("%s was edited and runs as it stands, without kernels.%s", _function.__qualname__, _name)
