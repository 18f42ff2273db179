"""A base model's NF4 weights on disk, to be read on the next start instead of being quantised again."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from torchtune_lite.checkpoint.formats.files import sampled_sha256
from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors, write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import base_parameters, set_parameter
from torchtune_lite.checkpoint.store.manifest import verify
from torchtune_lite.checkpoint.store.publishing import publish
from torchtune_lite.errors import CheckpointError, SaveError
from torchtune_lite.kernels.nf4.codec import NF4Weight
from torchtune_lite.peft import adapter_modules, blank_parts, from_nf4_parts, is_quantized, nf4_parts, num_bytes
from torchtune_lite.utils import counted
from torchtune_lite.utils.sharding import is_sharded

log = logging.getLogger("torchtune_lite")

FORMAT = 2
"""The version, increased when the quantiser gives other bits for the same weight, or the layout changes."""
WEIGHTS = "nf4.safetensors"


def fingerprint(files: Sequence[Path]) -> list[tuple[str, int, int, str]]:
    """Return name, size, mtime_ns and the `sampled_sha256` of each file.

    A file that is replaced, downloaded again or written to has another fingerprint; one that was changed in place
    between the samples, its mtime then set back, has not. Nor is a folder that moved known as another: paths do not
    count.
    """
    stats = {path: path.stat() for path in files}
    return [(path.name, stat.st_size, stat.st_mtime_ns, sampled_sha256(path)) for path, stat in stats.items()]


class NF4Cache:
    """The NF4 weights that `model` will have on `device` in `dtype`, in a folder of their own in `cache_dir`.

    Its name is that of the base and a hash of whatever decides their bits: the `fingerprint` of `files`, `reading` (how
    the weights are got from them), which weights they are and the shapes of their parts, dtype and kind of device.
    """

    def __init__(
        self,
        cache_dir: Path | str,
        model: nn.Module,
        files: Sequence[Path],
        reading: Mapping[str, Any],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._model, self._device = model, torch.device(device)
        self._shapes = {name: tuple(p.shape) for name, p in base_parameters(model).items() if is_quantized(p)}
        self._expected = {
            f"{name}/{field}": (part.dtype, tuple(part.shape))
            for name, shape in self._shapes.items()
            for field, part in blank_parts(shape, dtype)._asdict().items()
        }
        key = [FORMAT, fingerprint(files), dict(reading), str(dtype), self._device.type, str(self._expected)]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self.folder = Path(cache_dir) / f"{files[0].resolve().parent.name}-{digest[:16]}"

    def _parts(self) -> dict[str, Tensor]:
        return {
            f"{name}/{field}": part
            for name in self._shapes
            for field, part in nf4_parts(self._model.get_parameter(name))._asdict().items()
        }

    def fill(self) -> set[str]:
        """Give the model its NF4 weights and return their names; without a cache, or with a damaged one, none.

        The file is hashed and compared with its manifest first; a damaged one is a warning.
        """
        if not self.folder.exists():
            return set()
        start = time.perf_counter()
        try:
            verify(self.folder)
            weights = read_safetensors(self.folder / WEIGHTS)
            if {name: (weight.dtype, weight.shape) for name, weight in weights.items()} != self._expected:
                raise CheckpointError("holds other weights")
            for name, shape in self._shapes.items():
                parts = [weights[f"{name}/{field}"].read().to(self._device, copy=True) for field in NF4Weight._fields]
                set_parameter(self._model, name, from_nf4_parts(shape, NF4Weight(*parts)))
        except (CheckpointError, OSError, SafetensorError) as error:
            log.warning("the NF4 cache %s cannot be read and is rebuilt: %s", self.folder, error)
            return set()
        log.info("read %s from the NF4 cache %s", self._summary(start), self.folder)
        return set(self._shapes)

    def write(self) -> None:
        """Publish the weights that the model has now, in place of what was there; one warning where it cannot."""
        start = time.perf_counter()
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            with publish(self.folder) as draft:
                write_safetensors(draft / WEIGHTS, {name: Weight.of(part) for name, part in self._parts().items()})
        except SaveError as error:
            log.warning("no NF4 cache is kept: %s", error)
        else:
            log.info("wrote %s to the NF4 cache %s", self._summary(start), self.folder)

    def _summary(self, start: float) -> str:
        size = sum(num_bytes(self._model.get_parameter(name)) for name in self._shapes)
        return f"{counted(len(self._shapes), 'weight')} ({size / 1e6:,.1f} MB) in {time.perf_counter() - start:.1f} s"


def open_cache(
    cache_dir: Path | str | None, model: nn.Module, files: Sequence[Path], reading: Mapping[str, Any], **kind: Any
) -> NF4Cache | None:
    """Return the `NF4Cache` of these arguments; None, and one warning, where it would be without effect."""
    if cache_dir is None:
        reason = "this recipe keeps no cache"
    elif not any(map(is_quantized, model.parameters())):
        reason = "no weight of the model is in NF4"
    elif any(module.starts_from_base for module in adapter_modules(model).values()):
        reason = "the adapters start from the base (init_lora_weights)"
    elif any(map(is_sharded, model.parameters())):
        reason = "each process reads and quantises its own rows"
    else:
        return NF4Cache(cache_dir, model, files, reading, **kind)
    log.warning("checkpointer.cache_quantized is without effect: %s", reason)
    return None
