"""A run whose checkpoints are a few hundred bytes, and the conditions on its folder after any fault."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from torchtune_lite.checkpoint import claim_output_dir, latest, publish, published, retain, verify
from torchtune_lite.checkpoint.formats.files import write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors_files
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.checkpoint.store.claim import read_run_id
from torchtune_lite.checkpoint.store.manifest import read_manifest

STEPS = (9, 10, 11)  # in another order as numbers than as names
KEEP = 2


def save(output_dir: Path, step: int) -> None:
    """Publish a checkpoint the way a checkpointer does: tensors in two files, JSON, a subfolder."""
    with publish(output_dir / f"step_{step}", step=step, num_bytes=64) as draft:
        weights = {"x": Weight.of(torch.full((8,), float(step))), "y": Weight.of(torch.arange(8.0))}
        write_safetensors_files({draft / "1.safetensors": weights, draft / "2.safetensors": weights})
        disk.make_folder(draft / "resume")
        write_json(draft / "resume" / "trainer.json", {"progress": {"global_step": step}})


def run(output_dir: Path, steps: Iterable[int] = STEPS, saved: Callable[[int], object] = lambda step: None) -> None:
    """Save at each of `steps`, call `saved`, and keep the last two."""
    with claim_output_dir(output_dir):
        for step in steps:
            save(output_dir, step)
            saved(step)
            retain(output_dir, KEEP)


def check(output_dir: Path, saved: list[int]) -> None:
    """Assert that published checkpoints are whole and the run's own, and that the newest `saved` one is among them."""
    for folder in published(output_dir):
        verify(folder)
        assert read_manifest(folder).run_id == read_run_id(output_dir) is not None
    steps = {int(folder.name.removeprefix("step_")) for folder in published(output_dir)}
    assert steps >= set(saved[-KEEP:]), f"{saved} were saved, {steps} are there"
    assert latest(output_dir) == (output_dir / f"step_{max(steps)}" if steps else None)


def check_next_run(output_dir: Path) -> None:
    """Assert that the next run needs no repair: it saves, removes the remains, and keeps the right checkpoints."""
    run(output_dir, [12])
    assert latest(output_dir) == output_dir / "step_12" and len(published(output_dir)) <= KEEP
    assert not [path.name for path in output_dir.iterdir() if path.name.startswith((".tmp-", ".trash-"))]
    check(output_dir, [12])
