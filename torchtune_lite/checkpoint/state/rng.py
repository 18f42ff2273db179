"""The state of every random number generator that a run draws from."""

import logging
import random
from typing import Any

import numpy as np
import torch

from torchtune_lite.utils import counted

log = logging.getLogger("torchtune_lite")


def rng_state() -> dict[str, Any]:
    """Read the states of Python, numpy, torch on the CPU, each CUDA device and Apple's GPU, to be kept for a step."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    """Turn what `rng_state` read into what JSON can hold, for a save."""
    numpy_state = state["numpy"]["state"]
    return {
        "python": state["python"],
        "numpy": state["numpy"] | {"state": {"key": numpy_state["key"].tolist(), "pos": numpy_state["pos"]}},
        "torch": state["torch"].tolist(),
        "cuda": [each.tolist() for each in state["cuda"]],
        "mps": None if state["mps"] is None else state["mps"].tolist(),
    }


def set_own_rng_state(saved: dict[str, Any], rank: int, size: int, seed: str) -> None:
    """Set the state of this process from JSON, which has one, or several under `processes`.

    Where they were of another number of processes, draw anew by `seed` and rank, and say so in one log line.
    """
    states = saved.get("processes", [saved])
    if len(states) == size:
        set_rng_state(states[rank])
        return
    drawn = random.Random(f"{seed}/{rank}").getrandbits(32)
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
    log.warning(
        "the checkpoint has random states of %s, here are %d: dropout differs from an unbroken run",
        counted(len(states), "process", "processes"),
        size,
    )


def set_rng_state(state: dict[str, Any]) -> None:
    """Set what `rng_state` read, as it is or from JSON; one log line where the CUDA devices are not as many."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.as_tensor(state["torch"], dtype=torch.uint8))
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(torch.as_tensor(state["mps"], dtype=torch.uint8))
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.as_tensor(s, dtype=torch.uint8) for s in state["cuda"]])
    else:
        log.warning(
            "the checkpoint has random states of %s; there are %d here: dropout differs from an unbroken run",
            counted(len(state["cuda"]), "CUDA device"),
            torch.cuda.device_count(),
        )
