"""The state of every random number generator that a run draws from, as JSON."""

import logging
import random
from typing import Any

import numpy as np
import torch

from torchtune_lite.utils import counted

log = logging.getLogger("torchtune_lite")


def rng_state() -> dict[str, Any]:
    """Reads the states of Python, numpy, torch on the CPU, torch on each CUDA device and on Apple's GPU."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"] = {"key": numpy_state["state"]["key"].tolist(), "pos": numpy_state["state"]["pos"]}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in cuda],
        "mps": torch.mps.get_rng_state().tolist() if torch.backends.mps.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Sets what `rng_state` read; one log line where the CUDA devices are not as many as they were."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(torch.tensor(state["mps"], dtype=torch.uint8))
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in state["cuda"]])
    else:
        log.warning(
            "the checkpoint has random states of %s, here are %d: dropout differs from an unbroken run",
            counted(len(state["cuda"]), "CUDA device"),
            torch.cuda.device_count(),
        )
