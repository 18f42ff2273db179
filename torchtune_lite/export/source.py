"""What is exported: a model folder, or an adapter with its base, of which each weight is merged when it is read."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from torchtune_lite.checkpoint import FullModelHFCheckpointer, load_adapter, published
from torchtune_lite.checkpoint.formats.adapter import CONFIG, adapter_folder, add_adapters
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.model_weights import set_parameter
from torchtune_lite.data import ModelTokenizer, check_vocabulary, load_tokenizer
from torchtune_lite.data.tokenizers.chat_template import CHAT_TEMPLATE, find_chat_template
from torchtune_lite.data.tokenizers.files import read_json
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import Family, from_checkpoint
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.peft import adapter_modules

log = logging.getLogger("torchtune_lite")


@dataclass(frozen=True)
class Source:
    """A model whose weights lie in files: `base` those of the folder by our names, none of them read.

    `model` has their shapes on the meta device and the adapters in memory. `folder` has config.json; that of the
    tokenizer is `tokenizer_folder`. `adapter` is the folder of the adapter, None for a merged model.
    """

    folder: Path
    tokenizer_folder: Path
    adapter: Path | None
    checkpointer: FullModelHFCheckpointer
    model: TransformerDecoder
    base: dict[str, Weight]

    @property
    def family(self) -> Family:
        """The family of the model."""
        return self.checkpointer.family

    @property
    def config(self) -> DecoderConfig:
        """The shape of the model."""
        return self.model.config

    @property
    def layout(self) -> HFLayout:
        """Between our weights and the tensors of the folder."""
        return self.checkpointer.layout

    @cached_property
    def tokenizer(self) -> ModelTokenizer:
        """The tokenizer, with its chat template if it has one."""
        folder = self.tokenizer_folder
        has_template = find_chat_template(folder, read_json(folder / "tokenizer_config.json")) is not None
        tokenizer = load_tokenizer(folder, prompt_template=CHAT_TEMPLATE if has_template else None)
        check_vocabulary(tokenizer, self.config.vocab_size)
        return tokenizer

    @property
    def weights(self) -> dict[str, Weight]:
        """The weights of the plain model of the same function; those that are merged are float32."""
        adapters = {f"{name}.weight": module for name, module in adapter_modules(self.model).items()}
        return self.base | {
            name: Weight(torch.float32, self.base[name].shape, partial(self._merged, name, module))
            for name, module in adapters.items()
        }

    def _merged(self, name: str, module: nn.Module) -> Tensor:
        with filled(self.model, {name: self.base[name]}):
            return module.merged_weight()


def open_source(path: Path | str, base: Path | str | None = None) -> Source:
    """Open a run, a checkpoint or model folder, or an adapter; of a run, its newest checkpoint.

    `base` is the folder of an adapter's base model, where its config does not say so or that is gone. CheckpointError
    for what is none of these, or does not fit.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if not (folder / "config.json").is_file() and (checkpoints := published(folder)):
        folder = max(checkpoints, key=lambda each: each.stat().st_mtime_ns)
    if (folder / "config.json").is_file():
        return _open(folder, folder, None)
    adapter = adapter_folder(folder)
    if not (adapter / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has no config.json and no {CONFIG}: it is no run, checkpoint, model or adapter"
        )
    named = base or read_json(adapter / CONFIG).get("base_model_name_or_path")
    if not named or not Path(named).expanduser().is_dir():
        raise CheckpointError(
            f"adapter {adapter} is of the base {named!r}, which is no folder here; name it with --base"
        )
    with_tokenizer = next(
        (each for each in (folder, adapter) if any(each.glob("tokenizer*"))), Path(named).expanduser()
    )
    return _open(Path(named).expanduser(), with_tokenizer, adapter)


def _open(folder: Path, tokenizer_folder: Path, adapter: Path | None) -> Source:
    checkpointer = FullModelHFCheckpointer(folder)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    weights = checkpointer.checked_weights(model)
    if adapter is not None:
        add_adapters(model, adapter, checkpointer.layout)
        load_adapter(model, adapter, checkpointer.layout, weights)
    return Source(folder, tokenizer_folder, adapter, checkpointer, model.eval(), weights)


@contextmanager
def filled(model: nn.Module, weights: Mapping[str, Weight]) -> Iterator[None]:
    """Give parameters of a model on the meta device their values, in float32, for a block of code."""
    empty = {name: model.get_parameter(name) for name in weights}
    for name, weight in weights.items():
        set_parameter(model, name, weight.read().float())
    try:
        yield
    finally:
        for name, param in empty.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, param)
