"""Starts of LoRA that are made of the base weight, and what of that weight stays frozen.

W [out, in], A [r, in], B [out, r]; the update is s · B A. All is computed in float32 (float64 for such a weight).
"""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchtune_lite.peft.nf4 import dequantize, quantize

Factors = tuple[Tensor, Tensor]
NITER = re.compile(r"pissa_niter_(\d+)")


def pissa(weight: Tensor, rank: int, scaling: float, niter: int | None = None) -> Factors:
    """Return the A and B whose `s · B A` is W in its principal singular directions (PiSSA, arXiv 2404.02948, eq. 2-4).

    With `niter`, by that many iterations of a randomised decomposition (Halko et al., arXiv 0909.4061), in seconds
    instead of minutes for a large weight. Singular values are divided by s, so that W is taken apart at any alpha.
    """
    if niter is None:
        u, values, v = torch.linalg.svd(weight, full_matrices=False)
        u, values, v = u[:, :rank], values[:rank], v[:rank]
    else:
        u, values, v = torch.svd_lowrank(weight, rank, niter=niter)
        v = v.t()
    root = (values / scaling).sqrt()
    return root[:, None] * v, u * root


def olora(weight: Tensor, rank: int, scaling: float) -> Factors:
    """Return the first r rows of R and columns of Q of `W = Q R` (OLoRA, arXiv 2406.01775, section 3)."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def loftq(weight: Tensor, rank: int, scaling: float) -> Factors:
    """Return the A and B whose `s · B A` is nearest to what NF4 loses of W (LoftQ, arXiv 2310.08659, one round)."""
    return pissa(weight - dequantize(quantize(weight)), rank, scaling)


def starting_factors(name: str) -> Callable[[Tensor, int, float], Factors]:
    """Return the function of a start by its name in PEFT's `init_lora_weights`; ValueError for one that is unknown."""
    known = {"pissa": pissa, "olora": olora, "loftq": loftq}
    if found := NITER.fullmatch(name):
        return partial(pissa, niter=int(found[1]))
    if name not in known:
        raise ValueError(f"init_lora_weights is {name!r}; allowed are {', '.join(known)}, pissa_niter_N, or null")
    return known[name]
