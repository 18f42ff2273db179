"""What is known of the run that a checkpoint belongs to, read from the files that lie beside it."""

import inspect
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchtune_lite import config
from torchtune_lite.checkpoint import published
from torchtune_lite.config.text import document
from torchtune_lite.data.readers.local_files import kind_of, named_kind
from torchtune_lite.errors import ConfigError
from torchtune_lite.redaction import redact
from torchtune_lite.training.metrics.metrics_file import FILE_NAME, read_metrics
from torchtune_lite.utils import REPOSITORY

CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
"""The folder of a model in the cache of huggingface_hub."""

NOT_SCORES = ("run.json", "best.json")
"""Files beside a run's checkpoints that are not results of an evaluation."""
NO_MEASURES = (
    *("seconds", "total_evaluation_time_seconds", "start_time", "end_time", "date", "sample_len"),
    *("max_seq_len", "stride", "windows"),
)
"""Numbers in results that are not scores."""


@dataclass(frozen=True)
class RunFacts:
    """The config of a run, its base and data by names that mean something elsewhere, its losses and its scores.

    `base_repo` and `hub_data` are repositories of the hub, `data` the names of all data sets. `losses` are rows of
    `metrics.jsonl`, `totals` what `run.json` has, `scores` rows of file, measure and value. `adapter` is the
    adapter_config.json of one that stands alone. Of a folder that is not a run's checkpoint, such as an export, only a
    base that was given is known.
    """

    config: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    base_repo: str | None = None
    data: list[str] = field(default_factory=list)
    hub_data: list[str] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    scores: list[tuple[str, str, float]] = field(default_factory=list)
    adapter: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, base: str | None = None) -> "RunFacts":
        """Read the facts on a checkpoint; `base` is the repository of its base, where the user has named it."""
        folder = folder.resolve()
        run, metrics = folder.parent, folder.parent / FILE_NAME
        if folder not in published(run):
            return cls(base=base, base_repo=base)
        values = document.read(run / "config.yaml").values if (run / "config.yaml").is_file() else {}
        trained_from = (values.get("checkpointer") or {}).get("checkpoint_dir")
        base = base or (trained_from and _repository(Path(trained_from)))
        data = list(dict.fromkeys(_data_sets(values.get("dataset"))))
        return cls(
            config=_portable(redact(values)),
            base=base or (trained_from and Path(trained_from).name),
            base_repo=base,
            data=[name for name, _ in data],
            hub_data=[name for name, is_on_hub in data if is_on_hub],
            losses=read_metrics(metrics, ("loss", "val_loss")) if metrics.is_file() else [],
            totals=_json(run / "run.json"),
            scores=list(_scores(run, folder.name)),
        )


def _repository(folder: Path) -> str | None:
    """Return the repository that a folder was fetched from: of the hub's cache, or as its config.json says."""
    for part in folder.parts:
        if found := CACHED.fullmatch(part):
            return f"{found[1]}/{found[2]}"
    return repository_name(_json(folder / "config.json").get("_name_or_path"))


def repository_name(name: Any) -> str | None:
    """Return a name that is one of a repository; None for a path, and anything else."""
    return name if isinstance(name, str) and REPOSITORY.fullmatch(name) and not Path(name).exists() else None


def _data_sets(node: Any) -> Iterator[tuple[str, bool]]:
    """Yield the name of each data set in a part of a config, and whether it is a repository of the hub."""
    if isinstance(node, list):
        for each in node:
            yield from _data_sets(each)
        return
    if not isinstance(node, dict):
        return
    source = node.get("source", _default_source(node.get("_component_")))
    if isinstance(source, str):
        for name in _paths(node.get("data_files")) if named_kind(source) else [source]:
            is_on_hub = not named_kind(source) and not kind_of(Path(name)) and repository_name(name) is not None
            yield (name if is_on_hub else Path(name).name), is_on_hub
    for value in node.values():
        yield from _data_sets(value)


def _default_source(component: Any) -> Any:
    """Return the source that a builder of data sets has of its own, such as Alpaca's."""
    if not str(component).startswith(("torchtune_lite.datasets.", "torchtune.datasets.")):
        return None
    try:
        source = inspect.signature(config.find(component)).parameters.get("source")
    except ConfigError:
        return None
    return None if source is None or source.default is source.empty else source.default


def _paths(files: Any) -> list[str]:
    """List the paths in `data_files`: one, several, or a mapping of splits."""
    if isinstance(files, dict):
        files = list(files.values())
    return [path for each in files for path in _paths(each)] if isinstance(files, list) else [files] if files else []


def _portable(node: Any) -> Any:
    """Return a config with the last part of each absolute path alone: a card tells nothing of a machine."""
    if isinstance(node, dict):
        return {key: _portable(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_portable(each) for each in node]
    is_path = isinstance(node, str) and (node.startswith("~") or Path(node).is_absolute())
    return Path(node).name if is_path else node


def _scores(run: Path, checkpoint: str) -> Iterator[tuple[str, str, float]]:
    """Yield the results of evaluations: file, measure, value; those of lm-evaluation-harness by task.

    They lie beside the run's checkpoints, or where `tune eval` puts those of this one.
    """
    for path in sorted([*run.glob("*.json"), *run.glob(f"eval/{checkpoint}/*.json")]):
        content = _json(path) if path.name not in NOT_SCORES else {}
        yield from ((path.stem, name, value) for name, value in content.items() if _is_score(name, value))
        tasks = content.get("results")
        for task, measures in tasks.items() if isinstance(tasks, dict) else ():
            for name, value in measures.items() if isinstance(measures, dict) else ():
                if _is_score(name, value):
                    yield path.stem, f"{task}: {name.removesuffix(',none')}", value


def _is_score(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and name not in NO_MEASURES


def _json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file; an empty one where there is none: a card does without what cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
