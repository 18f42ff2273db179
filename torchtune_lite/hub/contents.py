"""Which files of a checkpoint or an export a repository gets: those that a manifest proves whole, and a model card.

The optimizer's state and the manifest stay here. A repository has the merged model or the adapter, as loaders expect:
the adapter beside the weights that it is merged into would be applied twice.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from torchtune_lite.checkpoint import verify
from torchtune_lite.checkpoint.folders import chosen_folder
from torchtune_lite.checkpoint.formats.adapter_config import CONFIG
from torchtune_lite.checkpoint.formats.files import read_json
from torchtune_lite.checkpoint.store.manifest import read_manifest
from torchtune_lite.checkpoint.tokenizer import TOKENIZER_FILES
from torchtune_lite.errors import ConfigError
from torchtune_lite.hub.card import CARD, Kind, model_card
from torchtune_lite.hub.facts import RunFacts, repository_name

CURVE = "loss_curve.png"
ADAPTER, RESUME = "adapter/", "resume/"
WEIGHT_FILES: dict[Kind, tuple[str, ...]] = {
    "model": ("model*.safetensors", "model.safetensors.index.json"),
    "adapter": ("adapter_model.safetensors", "adapter_model.bin"),
    "gguf": (),  # of which each is a model by itself
}
"""What a loader takes for weights, or for the list of their files."""


@dataclass(frozen=True)
class Contents:
    """What a repository gets: each path in it, with the file or the bytes that stand there, of a checkpoint `folder`.

    `is_base_known`: the card names the base model in a way that the hub understands.
    """

    folder: Path
    kind: Kind
    files: dict[str, Path | bytes]
    is_base_known: bool

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size

    def replaced(self, names: Iterable[str]) -> list[str]:
        """Return the weights of an earlier upload among `names` in the repository, which this one has not got.

        ConfigError where there are weights that loaders would mix with these.
        """
        weights = {kind: sorted(filter(partial(_matches, WEIGHT_FILES[kind]), names)) for kind in WEIGHT_FILES}
        other: Kind = "adapter" if self.kind == "model" else "model"
        if self.kind != "gguf" and weights[other]:
            raise ConfigError(
                f"the repository has {weights[other][0]}: a loader would apply the adapter to the model, which "
                "has it already; choose another repository"
            )
        return [name for name in weights[self.kind] if name not in self.files]


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def collect(path: Path, repo: str, *, adapter: bool = False, base: str | None = None) -> Contents:
    """Collect the files of a run, of one of its checkpoints or of an export, for the repository `repo`.

    `adapter` takes the adapter of a checkpoint alone. `base` is the repository of the base model, where the files do
    not tell. CheckpointError for a folder that is not whole or cannot be verified, ConfigError where what is asked for
    is not in it.
    """
    folder = chosen_folder(path)
    verify(folder)
    written = read_manifest(folder).files
    kind = _kind(folder, written, adapter)
    facts = RunFacts.of(folder, base)
    if kind == "adapter":
        facts, files = _adapter_files(folder, written, facts)
    else:
        files = {name: folder / name for name in written if not name.startswith((ADAPTER, RESUME))}
    if facts.config and (curve := folder.parent / CURVE).is_file():
        files[CURVE] = curve
    own_card = folder / CARD
    card = model_card(repo, facts, kind, curve=CURVE if CURVE in files else None).encode()
    files[CARD] = own_card if own_card.is_file() else card
    return Contents(folder, kind, dict(sorted(files.items())), facts.base_repo is not None)


def _kind(folder: Path, written: Collection[str], adapter: bool) -> Kind:
    """Tell what is sent of a folder."""
    has_adapter = f"{ADAPTER}{CONFIG}" in written or CONFIG in written
    if adapter and not has_adapter:
        raise ConfigError(f"{folder} has no adapter; leave --adapter out to send the model")
    if adapter or CONFIG in written:
        return "adapter"
    if "config.json" in written:
        return "model"
    if any(name.endswith(".gguf") for name in written):
        return "gguf"
    raise ConfigError(f"{folder} has no merged model{'; add --adapter to send its adapter' * has_adapter}")


def _adapter_files(folder: Path, written: Collection[str], facts: RunFacts) -> tuple[RunFacts, dict[str, Path | bytes]]:
    """Return the files of an adapter in PEFT's layout, which names its base by a repository, not by a path."""
    within = ADAPTER if f"{ADAPTER}{CONFIG}" in written else ""
    config = read_json(folder / within / CONFIG)
    base = facts.base_repo or repository_name(config.get("base_model_name_or_path"))
    if base is None:
        raise ConfigError(
            "an adapter names the repository of its base model, and this one knows only a folder; add --base OWNER/NAME"
        )
    beside = (*TOKENIZER_FILES, "LICENSE*")
    files: dict[str, Path | bytes] = {
        name.removeprefix(within): folder / name
        for name in written
        if name.startswith(within) or _matches(beside, name)
    }
    config["base_model_name_or_path"] = base
    files[CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return replace(facts, base=base, base_repo=base, adapter=config), files
