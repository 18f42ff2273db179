"""Checkpoints: a folder in, a folder out, and what a run needs to go on from one."""

from torchtune_lite.checkpoint.adapter import load_adapter, write_adapter
from torchtune_lite.checkpoint.hf import FullModelHFCheckpointer
from torchtune_lite.checkpoint.meta import FullModelMetaCheckpointer
from torchtune_lite.checkpoint.resume import latest, restore, resume_folder
from torchtune_lite.checkpoint.rng import rng_state, set_rng_state
from torchtune_lite.checkpoint.store import publish, published
from torchtune_lite.checkpoint.training_state import TrainingState, gather

__all__ = [
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "TrainingState",
    "gather",
    "latest",
    "load_adapter",
    "publish",
    "published",
    "restore",
    "resume_folder",
    "rng_state",
    "set_rng_state",
    "write_adapter",
]
