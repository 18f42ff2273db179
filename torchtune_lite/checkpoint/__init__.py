"""Checkpoints: a folder in, a folder out, and what a run needs to go on from one."""

from torchtune_lite.checkpoint.building import build_decoder, put_saved_adapters
from torchtune_lite.checkpoint.description import found
from torchtune_lite.checkpoint.folders import ModelFolder, find_model
from torchtune_lite.checkpoint.formats.adapter import load_adapter, write_adapter
from torchtune_lite.checkpoint.formats.hf import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.meta import FullModelMetaCheckpointer
from torchtune_lite.checkpoint.state.resume import check_resumable, restore, run_facts, start_date
from torchtune_lite.checkpoint.state.rng import rng_state, set_rng_state
from torchtune_lite.checkpoint.state.run_state import TrainingState, gather
from torchtune_lite.checkpoint.store.claim import Claim, claim_output_dir
from torchtune_lite.checkpoint.store.discovery import latest, newest, read_best, resume_folder
from torchtune_lite.checkpoint.store.manifest import verify
from torchtune_lite.checkpoint.store.publishing import check_space, publish, published, retain

__all__ = [
    "Claim",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "ModelFolder",
    "TrainingState",
    "build_decoder",
    "check_resumable",
    "check_space",
    "claim_output_dir",
    "find_model",
    "found",
    "gather",
    "latest",
    "load_adapter",
    "newest",
    "publish",
    "published",
    "put_saved_adapters",
    "read_best",
    "restore",
    "resume_folder",
    "retain",
    "rng_state",
    "run_facts",
    "set_rng_state",
    "start_date",
    "verify",
    "write_adapter",
]
