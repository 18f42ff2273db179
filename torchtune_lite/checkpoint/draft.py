"""A checkpoint folder on its way: laid out by one process, filled by all that have a part of the model, compared."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from torchtune_lite.checkpoint.formats.adapter import check_adapter
from torchtune_lite.checkpoint.formats.safetensors_stream import Files, fill, lay_out
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.verification import compare
from torchtune_lite.errors import CheckpointError, SaveError
from torchtune_lite.peft import adapter_modules
from torchtune_lite.utils.world import World

log = logging.getLogger("torchtune_lite")


class Draft:
    """What a `folder` is to hold, as it is added: files with their weights, and calls that write the rest."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self._world = folder, world
        self._files: dict[Path, Mapping[str, Weight]] = {}
        self._calls: list[Callable[[], None]] = []

    def add(self, write: Callable[[], None], files: Files | None = None) -> None:
        """Add files, and what one process writes before them."""
        self._calls.append(write)
        self._files |= files or {}

    def write(self) -> None:
        """Write everything; the first process all but the rows that others have."""

        def begin() -> None:
            for call in self._calls:
                call()
            lay_out(self._files)

        self._world.lead(begin)
        self._world.together(lambda: fill(self._files, leads=self._world.rank == 0))

    def verify(
        self,
        name: str,
        model: nn.Module,
        layout: HFLayout,
        readers: Sequence[Any],
        originals: Mapping[str, Weight] | None,
    ) -> None:
        """Compare what `readers` read, to be called `name`, with the live model; SaveError where it differs."""
        start, found = time.perf_counter(), "the adapter is as it was trained"
        try:
            if adapter_modules(model):
                self._world.together(lambda: check_adapter(self.folder / "adapter", model, layout))
            for reader in readers:
                weights = self._world.together(lambda reader=reader: reader.checked_weights(model))
                found = self._world.together(lambda weights=weights: compare(model, weights, originals))
        except CheckpointError as error:
            problem = str(error).replace(self.folder.name, name)
            raise SaveError(
                f"not saved: what was written is not the model that was trained: {problem}; please report it "
                "(verify_saves: null saves without this check)"
            ) from error
        log.info("verified %s in %.1f s: %s", name, time.perf_counter() - start, found)
