"""The choice of the checkpoint to resume from: the newest one that verifies, or the one that is named.

A checkpoint without a manifest, written by hand or by an older version, cannot be verified. It is used with a warning
when it is named, and otherwise only where no checkpoint has a manifest.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.formats.files import read_json
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.checkpoint.state.run_state import TRAINER
from torchtune_lite.checkpoint.store.claim import check_output_dir
from torchtune_lite.checkpoint.store.manifest import MANIFEST, has_manifest, read_manifest, verify
from torchtune_lite.checkpoint.store.publishing import published
from torchtune_lite.errors import CheckpointError, ConfigError

AUTO = "auto"
BEST = "best.json"
"""The file of an output_dir that names its checkpoint with the lowest validation loss."""

log = logging.getLogger("torchtune_lite")


def resume_folder(output_dir: Path | str, resume_from_checkpoint: bool | str) -> Path | None:
    """Choose what to resume from; None for a new run.

    False is a new run; True and "auto" are the newest checkpoint in `output_dir`, or a new run where there is none,
    with True of which a warning tells; else the folder that is named. ConfigError for a run that would meet another's
    checkpoints in `output_dir`, or its own later ones, which it must not overwrite, or that cannot write there.
    """
    check_output_dir(output_dir)
    if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint != AUTO:
        return _named(Path(resume_from_checkpoint), Path(output_dir))
    if not resume_from_checkpoint:
        if found := [folder.name for folder in published(output_dir)]:
            raise ConfigError(
                f"output_dir {output_dir} holds another run ({listed(found)}); set resume_from_checkpoint: True to "
                "go on with it, or choose a new output_dir"
            )
        return None
    newest = latest(output_dir)
    if newest is None:
        level = logging.INFO if resume_from_checkpoint == AUTO else logging.WARNING
        log.log(level, "%s holds no checkpoint to resume from: a new run starts", output_dir)
    return newest


def _named(folder: Path, output_dir: Path) -> Path:
    if has_manifest(folder):
        try:
            verify(folder)
        except CheckpointError as error:
            raise CheckpointError(
                f"resume_from_checkpoint: {error} (if you changed it, remove {MANIFEST} to resume without the check)"
            ) from error
    if not _is_resumable(folder):
        raise CheckpointError(f"resume_from_checkpoint {folder} is not a checkpoint folder with a resume/ in it")
    if not has_manifest(folder):
        _warn_unverified(folder)
    inside = folder.resolve().parent == output_dir.resolve()
    later = [other.name for other in published(output_dir) if not inside or _steps(other) > _steps(folder)]
    if later:
        raise ConfigError(
            f"resume_from_checkpoint is {folder}, but output_dir {output_dir} holds {listed(later)}, which would be "
            "in the way; move them, choose a new output_dir, or set resume_from_checkpoint: True"
        )
    return folder


def latest(output_dir: Path | str) -> Path | None:
    """Find the checkpoint in `output_dir` with the most optimizer steps done that verifies and can be resumed from.

    A warning for each newer one says why it is not taken. None where there is no checkpoint; CheckpointError, with the
    reasons, where there are some and none will do.
    """
    unverified, passed_over = None, {}
    for folder in sorted(published(output_dir), key=_steps, reverse=True):
        try:
            verify(folder)
            if _is_resumable(folder):
                break
            passed_over[folder] = f"{folder} was saved without resume/"
        except CheckpointError as error:
            passed_over[folder] = str(error)
            if unverified is None and not has_manifest(folder) and _is_resumable(folder):
                unverified = folder
    else:
        folder = unverified
    if folder is None and passed_over:
        raise CheckpointError(f"no checkpoint in {output_dir} can be resumed from: {'; '.join(passed_over.values())}")
    for newer, reason in passed_over.items():
        if newer == folder:
            _warn_unverified(folder)
            break
        log.warning("%s; resuming from %s instead", reason, folder)
    return folder


def newest(output_dir: Path | str) -> Path | None:
    """Find the checkpoint in `output_dir` with the most optimizer steps done that has all its bytes, to be used.

    What counts is what `verify` finds in the quick way; a warning for each newer one says why it is not taken. One
    without a manifest is taken as it is. None where there is no checkpoint; CheckpointError where none is whole.
    """
    damaged: list[str] = []
    for folder in sorted(published(output_dir), key=_steps, reverse=True):
        try:
            if has_manifest(folder):
                verify(folder, quick=True)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            log.warning("%s; taking %s instead", problem, folder.name)
        return folder
    if damaged:
        raise CheckpointError(f"no checkpoint in {output_dir} is whole: {'; '.join(damaged)}")
    return None


def read_best(output_dir: Path | str) -> dict[str, Any]:
    """Read `BEST`: `checkpoint`, its name, `step` and `val_loss`; an empty dict where there is none, or it is gone."""
    try:
        best = json.loads((Path(output_dir) / BEST).read_text(encoding="utf-8"))
        return best if math.isfinite(best["val_loss"]) and (Path(output_dir) / best["checkpoint"]).is_dir() else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _warn_unverified(folder: Path) -> None:
    log.warning("%s has no %s, so it cannot be verified; resuming from it all the same", folder, MANIFEST)


def _is_resumable(folder: Path) -> bool:
    return (folder / "resume" / TRAINER).is_file()


def _steps(folder: Path) -> tuple[float, int]:
    """Say after how many steps a folder was saved, and when, even of one that is damaged; unknown is newest."""
    modified = folder.stat().st_mtime_ns
    try:
        if (step := read_manifest(folder).step) is not None:
            return step, modified
    except CheckpointError:
        pass
    try:
        return read_json(folder / "resume" / TRAINER)["progress"]["global_step"], modified
    except (CheckpointError, KeyError, TypeError):
        name, _, number = folder.name.partition("_")
        return (int(number) if name == "step" else math.inf), modified
