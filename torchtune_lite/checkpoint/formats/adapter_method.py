"""The method of a saved adapter: where its adapters go in a model without weights, and what they are."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from torchtune_lite.checkpoint.formats.adapter import CONFIG, adapter_folder, saved_weights
from torchtune_lite.checkpoint.formats.adapter_config import config_problems
from torchtune_lite.checkpoint.formats.adapter_embeddings import put_embeddings, token_indices
from torchtune_lite.checkpoint.formats.files import read_json
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.errors import CheckpointError
from torchtune_lite.peft import FILES, PREFIX, freeze_base


class SavedMethod:
    """The method of a saved adapter, as `model.adapter` takes one: it knows where each adapter goes, and as what.

    `targets` are our names of the projections that it adapts; none, if its method adapts none.
    """

    def __init__(self, path: Path | str, layout: HFLayout, names: Iterable[str]) -> None:
        folder = adapter_folder(path)
        self._source, self._config = f"adapter {folder}", read_json(folder / CONFIG)
        if problems := config_problems(self._config, layout):
            raise CheckpointError(f"{self._source} does not fit: {'; '.join(problems)}")
        self._file = FILES[self._config["peft_type"]]
        self._weights = saved_weights(folder, layout, self._file)
        self._paths: dict[str, str] = {}
        if self._file.on_projections:
            self._find(layout, names)

    @property
    def targets(self) -> list[str]:
        """The projections that get an adapter."""
        return list(self._paths)

    def _find(self, layout: HFLayout, names: Iterable[str]) -> None:
        places: dict[str, list[str]] = {}
        for name in names:
            places.setdefault(layout.module_path(f"{name}.weight"), []).append(name)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, weight in self._weights.items():
            for suffix in self._file.names:
                if name.startswith(PREFIX) and name.endswith(f".{suffix}"):
                    shapes.setdefault(name.removeprefix(PREFIX).removesuffix(f".{suffix}"), {})[suffix] = weight.shape
        if unknown := [path for path in shapes if path not in places]:
            raise CheckpointError(f"{self._source} does not fit: the model has no projection {listed(unknown)}")
        first = next(iter(self._file.names))
        if not shapes or any(first not in own for own in shapes.values()):
            raise CheckpointError(f"{self._source} does not fit: it has no weights {first}")
        self._paths = {name: path for path in shapes for name in places[path]}
        self._put = self._file.placed(self._config, shapes)

    def put(self, path: str, base: nn.Module) -> nn.Module:
        """Put an adapter on the projection `path`."""
        return self._put(self._paths[path], base)

    def complete(self, model: nn.Module) -> None:
        """Put on a model without weights, whose projections have their adapters, the rest; freeze all else."""
        try:
            if not self._file.on_projections:
                self._file.put_on(model, self._config)
            freeze_base(model)
            put_embeddings(model, token_indices(self._config), self._config, self._weights)
        except ValueError as error:
            raise CheckpointError(f"{self._source} does not fit: {error}") from error


def put_adapters(model: nn.Module, path: Path | str, layout: HFLayout) -> None:
    """Put the adapters of a PEFT adapter, without their values, on a plain `model`.

    Their values come from `load_adapter`. CheckpointError where the adapter is not served, or has weights for a
    projection that `model` lacks.
    """
    method = SavedMethod(path, layout, [name for name, each in model.named_modules() if isinstance(each, nn.Linear)])
    for name in method.targets:
        model.set_submodule(name, method.put(name, model.get_submodule(name)))
    method.complete(model)
