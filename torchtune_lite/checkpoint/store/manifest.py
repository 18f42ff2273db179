"""`MANIFEST.json`: what a published folder holds, written last, so that any later change to a file is found.

    {"format": 1, "run_id": "7f3a…", "step": 9, "files": {"config.json": {"size": 9, "sha256": "…"}}, "sha256": "…"}

The last entry is the hash of the others. Files that came later are none of its business; a folder without a manifest
was written by hand or by an older version, and counts as unverified.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.formats.files import read_json, write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import damage
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.checkpoint.store import disk
from torchtune_lite.errors import CheckpointError
from torchtune_lite.utils import counted

FORMAT = 1
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Manifest:
    """The run that wrote a folder, its optimizer steps, and `size` and `sha256` of each file by its path."""

    run_id: str | None
    step: int | None
    files: dict[str, dict[str, Any]]


def has_manifest(folder: Path | str) -> bool:
    """Return whether a folder can be verified."""
    return (Path(folder) / MANIFEST).exists()


def write_manifest(folder: Path, *, run_id: str | None, step: int | None) -> None:
    """Hash every file of `folder`, write its manifest, and return when all of it is on the disk.

    The hash is of what was read back, while it is still in memory.
    """
    paths = sorted(folder.rglob("*"))
    files = {}
    for path in filter(Path.is_file, paths):
        size, sha256 = disk.sha256(path)
        files[path.relative_to(folder).as_posix()] = {"size": size, "sha256": sha256}
        disk.sync_file(path)
    write_json(folder / MANIFEST, seal({"format": FORMAT, **asdict(Manifest(run_id, step, files))}))
    disk.sync_file(folder / MANIFEST)
    for path in [*filter(Path.is_dir, paths), folder]:
        disk.sync_folder(path)


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of `folder`; CheckpointError where there is none, or a damaged or newer one."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{folder} has no {MANIFEST} to verify it by (from an older version, or made by hand?)")
    content = read_json(path)
    if (found := content.get("format")) != FORMAT:
        raise CheckpointError(f"{path}: has format {found}, this version reads {FORMAT}; is torchtune_lite too old?")
    if content.pop("sha256", None) != _hash(content):
        raise CheckpointError(f"{path}: is damaged: its content does not match its own sha256")
    manifest = Manifest(*(content.get(name) for name in ("run_id", "step", "files")))
    if not _is_well_formed(manifest):
        raise CheckpointError(f"{path}: is not a manifest of this format; was it written by hand?")
    return manifest


def _is_well_formed(manifest: Manifest) -> bool:
    """Return whether step and files have their types, and no file lies outside of the folder."""
    return (
        isinstance(manifest.step, int | None)
        and isinstance(manifest.files, dict)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
            for entry in manifest.files.values()
        )
        and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files)
    )


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Add to the content of a manifest the hash of it."""
    return {**content, "sha256": _hash(content)}


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify(folder: Path | str, *, quick: bool = False) -> None:
    """Compare each file of a published folder with its manifest; `quick` compares the sizes alone and reads nothing.

    CheckpointError names the files that are missing or differ, with what is there and what was written.
    """
    folder = Path(folder)
    files = read_manifest(folder).files
    if problems := [problem for name, entry in files.items() if (problem := _difference(folder / name, entry, quick))]:
        raise CheckpointError(f"{folder} is damaged: {listed(problems)}")


def _difference(path: Path, entry: dict[str, Any], quick: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            found = damage(path) or ("is truncated" if size < entry["size"] else "is too long")
            found = found.partition(":")[0]
            return f"{path.name} {found}: {counted(size, 'byte')}, {entry['size']:,} were written"
        if not quick and (found := disk.sha256(path)[1]) != entry["sha256"]:
            return f"{path.name} was changed: its sha256 is {found[:12]}…, was {entry['sha256'][:12]}…"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror or error})"
    return None
