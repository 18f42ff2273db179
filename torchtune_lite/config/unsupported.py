"""Features of torchtune's configs that are not supported here; configs run as they are if that changes nothing."""

from collections.abc import Container
from typing import Any

from torchtune_lite.config.text.document import Document
from torchtune_lite.errors import warn

ANY = object()
SHARED = "with parallel.data: fsdp processes share the weights"

# key: (the values that mean "off" besides false, null and enabled: false; what to do instead of turning it on)
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "ac_mode": (("full",), "use enable_activation_checkpointing: True"),
    "ac_option": ((1,), "use enable_activation_checkpointing: True"),
    "collate_fn": (
        ("torchtune.data.padded_collate_sft", "torchtune.data.padded_collate_packed"),
        "use collate: padded, or change the batches in a recipe of your own ('tune cp')",
    ),
    "compile": ((), "call torch.compile in a recipe of your own ('tune cp')"),
    "cudnn_deterministic_mode": ((), "set a seed; runs on the CPU repeat exactly"),
    "context_parallel_dim": ((1,), "for long sequences use model.mlp_tile and activation checkpointing"),
    "custom_sharded_layers": ((ANY,), ""),
    **dict.fromkeys(("data_parallel_replicate_dim", "data_parallel_shard_dim"), ((ANY,), "")),
    "enable_activation_offloading": ((), "use enable_activation_checkpointing: True and a smaller batch_size"),
    "enable_async_checkpointing": ((), "use save_every_n_steps and save_adapter_weights_only: True"),
    "enable_fp8_training": ((), "use dtype: bf16"),
    "enable_kv_cache": ((True,), "the cache is always on; remove the key"),
    "fp8_recipe_name": ((ANY,), ""),
    "fsdp": ((ANY,), ""),
    "fsdp_cpu_offload": ((), f"{SHARED}; for those of the optimizer use torchtune_lite.optim.CPUOffloadAdamW"),
    "fsdp_reshard_after_forward": ((ANY,), ""),
    "low_cpu_ram": ((True,), "weights are always read one at a time; remove the key"),
    "output_dir": ((ANY,), ""),
    "profiler": ((), "use torch.profiler in a recipe of your own ('tune cp')"),
    "quantizer": ((), "use a qlora_ model builder"),
    "resume_from_checkpoint": ((), "name the folder of the checkpoint in checkpointer.checkpoint_dir"),
    "tensor_parallel_dim": ((1,), f"{SHARED}, which is for models of any size; remove the key"),
    "tensor_parallel_plan": ((ANY,), ""),
}

PARALLEL = {
    "context": "use model.mlp_tile and activation checkpointing for long sequences",
    "offload": "for the state of the optimizer use torchtune_lite.optim.CPUOffloadAdamW, for the weights QLoRA",
    "tensor": f"{SHARED}, which is for models of any size; remove the key",
}
"""Keys of `parallel` elsewhere that are not served, and what to do instead."""

IMAGES = "it sees or makes images"
FAMILIES = {
    **dict.fromkeys(("clip", "clip_text", "flux", "llama3_2_vision", "llama3_vision", "llama4"), IMAGES),
    **dict.fromkeys(("t5", "t5_encoder"), "it is not a decoder"),
}
"""torchtune's families that are not here, by the names of their modules and of `model_type`, and why."""

RENAMED = {"verify_rows": "verify_saves: first_and_last, all or null"}
"""Keys of our own that another has taken the place of, and what to write instead."""


def drop(document: Document, served: Container[str]) -> list[str]:
    """Take out the keys of the table that the recipe does not serve; warn of those that are off, if no other is on.

    Returns one line for each that is on, and for each of our own that has another name now.
    """
    off, problems = [], []
    for key in [key for key in document.values if key in RENAMED and key not in served]:
        del document.values[key]
        problems.append(f"{document.place((key,))}: '{key}' was renamed; use {RENAMED[key]}")
    parallel = document.values.get("parallel")
    if "parallel" in served and isinstance(parallel, dict):
        problems += _drop_parallel(document, parallel)
    for key in [key for key in document.values if key in UNSUPPORTED and key not in served]:
        value = document.values.pop(key)
        also_off, instead = UNSUPPORTED[key]
        disabled = isinstance(value, dict) and not value.get("enabled", True)
        if not value or disabled or value in also_off or ANY in also_off:
            off.append(key)
        else:
            problems.append(f"{document.place((key,))}: '{key}' is not served here; {instead}")
    if off and not problems:
        warn(f"{document.name}: without effect here: {', '.join(off)}")
    return problems


def _drop_parallel(document: Document, parallel: dict[str, Any]) -> list[str]:
    problems = []
    for key in [key for key in parallel if key in PARALLEL]:
        del parallel[key]
        place = document.place(("parallel", key))
        problems.append(f"{place}: 'parallel.{key}' is not served here; {PARALLEL[key]}")
    return problems


def unserved_family(name: str) -> str:
    """Return "llama4 is a family that is not served: …" for a family of torchtune that is not here, or ""."""
    why = FAMILIES.get(name.lower())
    return f"{name} is a family that is not served: {why}" if why else ""
