"""The common part of the checkpointers of all layouts: a folder in, a folder out."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchtune_lite.checkpoint.description import described
from torchtune_lite.checkpoint.draft import Draft
from torchtune_lite.checkpoint.formats.adapter import WEIGHTS as ADAPTER_WEIGHTS
from torchtune_lite.checkpoint.formats.adapter import (
    adapter_weights,
    open_adapter,
    write_adapter_config,
)
from torchtune_lite.checkpoint.formats.adapter_config import check_adapters
from torchtune_lite.checkpoint.formats.safetensors_stream import Files, write_safetensors_files
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.merged_base import merged_base
from torchtune_lite.checkpoint.model_weights import (
    base_parameters,
    check_finite,
    check_weights,
    fill_with_zeros,
    load_weights,
    merged_weights,
)
from torchtune_lite.checkpoint.nf4_cache import open_cache
from torchtune_lite.checkpoint.sizes import check_sizes, grown_embeddings
from torchtune_lite.checkpoint.state.run_state import OPTIMIZER, TrainingState
from torchtune_lite.checkpoint.store.publishing import publish
from torchtune_lite.checkpoint.tokenizer import SmallFiles
from torchtune_lite.config import unserved_family
from torchtune_lite.data import check_vocabulary
from torchtune_lite.errors import CheckpointError, ConfigError, SaveError
from torchtune_lite.models import FAMILIES, Family, find_family
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.peft import adapter_modules, adapter_state, is_mergeable
from torchtune_lite.utils.world import World

MERGE_INTO = ("quantized", "original")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # OWNER/NAME
REWARD = "REWARD"  # torchtune's model_type of a classifier of any family

log = logging.getLogger("torchtune_lite")


class Checkpointer(ABC):
    """Reads a base model from `checkpoint_dir` and writes checkpoint folders.

    `checkpoint_files` are names in that folder or torchtune's `{filename_format, max_filename}`; by default, what it
    holds. `model_type` is a name of `models.find_family`, for files that do not tell. `adapter_checkpoint` is a folder
    in PEFT's layout, whose adapters the model goes on with; with `merge_adapter` they are merged into the base as it is
    read, so that the model may have new ones. `output_dir` and `recipe_checkpoint` are torchtune's; here the recipe's
    `output_dir` and `resume_from_checkpoint` decide. `merge_into` says what a save puts in the place of NF4 weights:
    "quantized" their own values, for exactly the function that was trained; "original" the full-precision ones of
    `checkpoint_dir`, read again, for a function nearer to the base. `cache_quantized` keeps the NF4 weights beside the
    run's folder, at 0.52 bytes a weight, and starts the next run of the same base from them.
    `decoder_args` has the sizes that the checkpoint gives, as arguments of `DecoderConfig`.
    """

    family: Family
    layout: HFLayout | None = None  # of the model that was last loaded or saved
    decoder_args: dict[str, Any]
    _files: list[Path]
    _small_files: SmallFiles
    _is_within = False  # the model is a part of a larger one
    adapter_is_given = False  # True: the model has the adapters of adapter_checkpoint, whatever its arguments
    world = World()  # of the processes that write a checkpoint together

    def __init__(
        self,
        checkpoint_dir: str | Path,
        checkpoint_files: Sequence[str] | Mapping[str, str] | None = None,
        model_type: str | None = None,
        output_dir: str | Path | None = None,
        adapter_checkpoint: str | Path | None = None,
        recipe_checkpoint: str | Path | None = None,
        merge_into: str = "quantized",
        cache_quantized: bool = False,
        merge_adapter: bool = False,
    ) -> None:
        self.checkpoint_dir = Path(checkpoint_dir)
        self.checkpoint_files = checkpoint_files
        self.adapter_checkpoint = adapter_checkpoint and Path(adapter_checkpoint)
        if checkpoint_dir == "" or not self.checkpoint_dir.is_dir():
            name = str(checkpoint_dir)
            fetch = f"; 'tune download {name}' makes one of a model of the hub" if HUB_NAME.fullmatch(name) else ""
            raise CheckpointError(f"checkpointer.checkpoint_dir {name!r} is not a folder{fetch}")
        if output_dir is not None and Path(output_dir).resolve() == self.checkpoint_dir.resolve():
            raise ConfigError(
                f"checkpointer.output_dir {output_dir} is checkpoint_dir; choose another folder to write to"
            )
        if recipe_checkpoint is not None:
            raise ConfigError(
                "checkpointer.recipe_checkpoint is not read; name a checkpoint folder in resume_from_checkpoint"
            )
        family = None if model_type in (None, REWARD) else find_family(model_type)
        if family is None and model_type not in (None, REWARD):
            problem = unserved_family(model_type) or f"{model_type!r} is unknown; allowed are {', '.join(FAMILIES)}"
            raise ConfigError(f"checkpointer.model_type: {problem}")
        if merge_into not in MERGE_INTO:
            raise ConfigError(f"checkpointer.merge_into {merge_into!r} is unknown; allowed are {', '.join(MERGE_INTO)}")
        if merge_adapter and adapter_checkpoint is None:
            raise ConfigError("checkpointer.merge_adapter: True merges adapter_checkpoint, which is null")
        self.merge_into, self.cache_quantized, self.merge_adapter = merge_into, cache_quantized, merge_adapter
        self._small_files = SmallFiles(self.checkpoint_dir)
        self._open(family)

    @property
    def tokenizer_args(self) -> dict[str, Any]:
        """Where the checkpoint's tokenizer is, as arguments of `models.tokenizer_of_checkpoint`."""
        return {"path": self.checkpoint_dir}

    @abstractmethod
    def _open(self, family: Family | None) -> None:
        """Set `family` (the one given, if any), `decoder_args` and the `_files` of weights; reads no weight."""

    @abstractmethod
    def _weights(self) -> dict[str, Weight]:
        """List the weights of the checkpoint by our names, as `layout` says; a name unknown to the family stays."""

    @abstractmethod
    def _their_name(self, name: str) -> str:
        """Return the checkpoint's name of our parameter `name`."""

    @abstractmethod
    def model_files(self, folder: Path, weights: Mapping[str, Weight]) -> Files:
        """Deal the weights of a merged model out to the files of a folder."""

    @abstractmethod
    def write_config(self, folder: Path, files: Files) -> None:
        """Write what a reader of the layout needs besides these files and those in `COPIED`."""

    def write_model(self, folder: Path, weights: Mapping[str, Weight]) -> None:
        """Write a merged model."""
        files = self.model_files(folder, weights)
        write_safetensors_files(files)
        self.write_config(folder, files)

    @abstractmethod
    def _readers(self, folder: Path) -> "list[Checkpointer]":
        """Open a folder that a model was written to."""

    def load(
        self,
        model: nn.Module,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        adapter_dtype: torch.dtype | None = None,
        cache_dir: Path | str | None = None,
        resume_from: Path | str | None = None,
    ) -> None:
        """Fill `model`, usually built on the meta device, one tensor at a time, and make its adapters.

        Adapters start fresh, in `adapter_dtype` (None: `dtype`), or from `adapter_checkpoint`. Names, shapes and dtypes
        are checked before the first value is read: CheckpointError lists what does not fit, and the model is then as it
        was. With `cache_quantized`, NF4 weights are read from `cache_dir`, or quantised and written there.

        `resume_from` is a checkpoint that `restore` is going to read: nothing that it holds is read here. A model
        without adapters then has zeros until that call.
        """
        if dtype == torch.float16:
            self.check_fp16()
        weights = self.checked_weights(model)
        self.check_adapters(model)
        if resume_from is not None and not adapter_modules(model):
            fill_with_zeros(model, device=device, dtype=dtype)
            return
        starts_from_base = any(module.starts_from_base for module in adapter_modules(model).values())
        given = self.adapter_checkpoint if self.goes_on_from_adapter else None
        given = given if resume_from is None else resume_from if starts_from_base else None
        saved = open_adapter(model, given, self.layout) if given else None
        if saved:
            saved.read_start()
        cache = None
        if self.cache_quantized and not self.merge_adapter:
            cache = open_cache(cache_dir, model, self._files, self.decoder_args, device=device, dtype=dtype)
        cached = cache.fill() if cache else ()
        rest = {name: weight for name, weight in weights.items() if name not in cached}
        load_weights(model, rest, device=device, dtype=dtype, source=self.checkpoint_dir, adapter_dtype=adapter_dtype)
        if cache and not cached and self.world.rank == 0:
            cache.write()
        for module in adapter_modules(model).values():
            module.init_adapter(adapter_dtype)
        if saved and resume_from is None:
            saved.load()

    def check_fp16(self) -> None:
        """Raise ConfigError where the model must not compute in fp16, not even with weights in fp32."""
        if not self.family.fits_fp16:
            raise ConfigError(
                f"dtype: fp16 does not hold the activations of {self.family.name} models; use bf16 or fp32"
            )

    def check_adapters(self, model: nn.Module) -> None:
        """Raise ConfigError for adapters of `model` that a save could not write, or not merge as `merge_into` says."""
        check_adapters(model, self.layout_of(model.config), self.merge_into)
        if not is_mergeable(model):
            log.info("virtual tokens are not weights: checkpoints have the adapter alone, which PEFT reads")

    def layout_of(self, config: DecoderConfig) -> HFLayout:
        """Return the layout of the files for a model of these sizes."""
        return HFLayout(self.family, config, self._is_within)

    @property
    def goes_on_from_adapter(self) -> bool:
        """Whether the model's adapters are to be those of `adapter_checkpoint`."""
        return self.adapter_checkpoint is not None and not self.merge_adapter

    def use_tokenizer(self, tokenizer: Any, vocab_size: int) -> None:
        """Check, as `data.check_vocabulary` does, that a tokenizer fits the model, and saves it with each checkpoint.

        Its files and its template take the place of the base's, and are compared with it on a chat.
        """
        check_vocabulary(tokenizer, vocab_size, self.checkpoint_dir)
        log.info(described(self.family.name, self.decoder_args, tokenizer))
        if self.adapter_is_given:
            log.info("going on with %s as it is: what 'model' says of adapters is not used", self.adapter_checkpoint)
        self._small_files = SmallFiles(self.checkpoint_dir, tokenizer)

    def save(
        self,
        folder: Path | str,
        model: nn.Module,
        *,
        adapter_only: bool = False,
        state: TrainingState | None = None,
        verify: bool = False,
    ) -> None:
        """Publish `folder`, which must not exist: the merged model, the adapter in `adapter/`, `state` in `resume/`.

        `adapter_only` leaves out the merged model and its config.json, as is done where adapters cannot be merged.
        Weights are merged in the dtype of the model, as `merge_into` says. `verify` reads back what was written and
        compares it with the live model (`verification`). SaveError, and no folder, when it cannot be written, a trained
        weight is NaN or infinite, or what was read back is not the model. The processes of `world`, each of which has a
        part of the model, call it together.
        """
        world, adapted = self.world, bool(adapter_modules(model))
        adapter_only = adapter_only or not is_mergeable(model)
        if adapter_only and not adapted:
            raise SaveError("save_adapter_weights_only is set, but the model has no adapter")
        world.together(lambda: check_finite(model))
        if self.layout is None:
            self.checked_weights(model)
        step = state.trainer["progress"].get("global_step") if state is not None else None
        with publish(folder, step=step, num_bytes=self._num_bytes(model, adapter_only, state), world=world) as path:
            draft, originals = Draft(path, world), None
            draft.add(partial(self._small_files.write, path))
            if adapted:
                merged = f" with {self.adapter_checkpoint} merged in" if self.merge_adapter else ""
                base = f"{self.checkpoint_dir}{merged}"
                files = {path / "adapter" / ADAPTER_WEIGHTS: adapter_weights(model, self.layout)}
                draft.add(partial(write_adapter_config, path / "adapter", model, self.layout, base), files)
            if not adapter_only:
                originals = self.checked_weights(model) if self.merge_into == "original" else None
                files = self.model_files(path, merged_weights(model, originals))
                draft.add(partial(self.write_config, path, files), files)
            if state is not None:
                files = {path / "resume" / OPTIMIZER: state.tensors}
                draft.add(partial(state.write_rest, path / "resume", self.family), files)
            draft.write()
            if verify:
                readers = [] if adapter_only else world.together(partial(self._readers, path))
                draft.verify(Path(folder).name, model, self.layout, readers, originals)

    def _num_bytes(self, model: nn.Module, adapter_only: bool, state: TrainingState | None) -> int:
        """Say how many bytes of tensors a save writes."""
        written = [] if adapter_only else [*merged_weights(model).values(), *self.layout.carried.values()]
        adapter = sum(tensor.nbytes for tensor in adapter_state(model).values())
        return sum(weight.num_bytes for weight in written) + adapter + (0 if state is None else state.num_bytes)

    def checked_weights(self, model: nn.Module) -> dict[str, Weight]:
        """List the weights of the checkpoint by our names; CheckpointError where they are not those of `model`.

        The rows that the model has beyond them are the mean of the others.
        """
        check_sizes(model, self.decoder_args, self.checkpoint_dir)
        self.layout = self.layout_of(model.config)
        weights = self._weights()
        try:
            self.layout.check_tied(weights)
        except ValueError as error:
            raise CheckpointError(f"{self.checkpoint_dir} {error}") from error
        weights |= grown_embeddings(weights, model, self.decoder_args)
        check_weights(
            {self._their_name(name): param for name, param in base_parameters(model).items()},
            {self._their_name(name): weight for name, weight in weights.items()},
            self.checkpoint_dir,
        )
        return merged_base(self, weights) if self.merge_adapter else weights
