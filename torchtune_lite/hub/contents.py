"""Which files of a checkpoint a repository gets: those that its manifest proves whole, and a model card.

The optimizer's state and the manifest stay here. A repository has the merged model or the adapter, as loaders expect:
the adapter beside the weights that it is merged into would be applied twice.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torchtune_lite.checkpoint import verify
from torchtune_lite.checkpoint.folders import chosen_folder
from torchtune_lite.checkpoint.formats.adapter_config import CONFIG
from torchtune_lite.checkpoint.formats.files import read_json
from torchtune_lite.checkpoint.store.manifest import read_manifest
from torchtune_lite.checkpoint.tokenizer import TOKENIZER_FILES
from torchtune_lite.errors import ConfigError
from torchtune_lite.hub.card import model_card
from torchtune_lite.hub.facts import RunFacts

CARD, CURVE = "README.md", "loss_curve.png"
ADAPTER, RESUME = "adapter/", "resume/"
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Contents:
    """What a repository gets: each path in it, with the file or the bytes that stand there, of a checkpoint `folder`.

    `is_base_known`: the card names the base model in a way that the hub understands.
    """

    folder: Path
    files: dict[str, Path | bytes]
    is_base_known: bool

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size


def is_weight_file(name: str) -> bool:
    """Return whether a loader would take a file of that name for weights, or for the list of their files."""
    return any(fnmatch(name, pattern) for pattern in WEIGHT_FILES)


def collect(path: Path, repo: str, *, adapter: bool = False, base: str | None = None) -> Contents:
    """Collect the files of a run, or of one of its checkpoints, for the repository `repo`.

    `adapter` takes the adapter alone. `base` is the repository of the base model, where the run does not tell.
    CheckpointError for a folder that is not whole or cannot be verified, ConfigError where what is asked for is not in
    it.
    """
    folder = chosen_folder(path)
    verify(folder)
    written = read_manifest(folder).files
    facts = RunFacts.of(folder, base)
    if adapter:
        files = _adapter_files(folder, written, facts)
    else:
        files = {name: folder / name for name in written if not name.startswith((ADAPTER, RESUME))}
        if "config.json" not in files:
            raise ConfigError(f"{folder} has no merged model; add --adapter to send its adapter")
    if (curve := folder.parent / CURVE).is_file():
        files[CURVE] = curve
    own_card = folder / CARD
    card = model_card(repo, facts, adapter=adapter, curve=CURVE if CURVE in files else None).encode()
    files[CARD] = own_card if own_card.is_file() else card
    return Contents(folder, dict(sorted(files.items())), facts.base_repo is not None)


def _adapter_files(folder: Path, written: dict[str, object], facts: RunFacts) -> dict[str, Path | bytes]:
    """Return the files of an adapter in PEFT's layout, which names its base by a repository, not by a path."""
    if f"{ADAPTER}{CONFIG}" not in written:
        raise ConfigError(f"{folder} has no adapter; leave --adapter out to send the model")
    if facts.base_repo is None:
        raise ConfigError(
            "an adapter names the repository of its base model, and the run knows only a folder; add --base OWNER/NAME"
        )
    files: dict[str, Path | bytes] = {
        name.removeprefix(ADAPTER): folder / name
        for name in written
        if name.startswith(ADAPTER) or any(fnmatch(name, pattern) for pattern in (*TOKENIZER_FILES, "LICENSE*"))
    }
    config = read_json(folder / ADAPTER / CONFIG) | {"base_model_name_or_path": facts.base_repo}
    return files | {CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}
