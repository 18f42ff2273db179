"""What is exported: a model folder, or an adapter with its base, of which each weight is merged when it is read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from torchtune_lite import config
from torchtune_lite.checkpoint import FullModelHFCheckpointer, ModelFolder, find_model, put_saved_adapters
from torchtune_lite.checkpoint.folders import chosen_folder
from torchtune_lite.checkpoint.formats.adapter import adapter_folder, open_adapter
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.merged_base import make_parameters, with_adapters
from torchtune_lite.data import ModelTokenizer, check_vocabulary
from torchtune_lite.errors import ConfigError
from torchtune_lite.models import Family, from_checkpoint
from torchtune_lite.modules import DecoderConfig, TransformerDecoder


@dataclass(frozen=True)
class Source:
    """A model whose weights lie in files: `base` are those of the folder `found.base` by our names, none of them read.

    `model` has their shapes on the meta device, and the adapters of `found.adapter` in memory, if there is one.
    """

    found: ModelFolder
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
        """The tokenizer, with the template of the training."""
        tokenizer = config.instantiate(self.found.tokenizer)
        if not isinstance(tokenizer, ModelTokenizer):
            raise ConfigError(f"{self.found.path} has a tokenizer of your own, which no other program reads")
        check_vocabulary(tokenizer, self.config.vocab_size)
        return tokenizer

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer's files."""
        return Path(self.tokenizer.path).expanduser().parent

    @property
    def adapter_folder(self) -> Path:
        """The folder of the adapter; ConfigError for a merged model."""
        if self.found.adapter is None:
            raise ConfigError(f"{self.found.path} is a merged model and has no adapter; name the folder of one")
        return self.found.adapter

    @property
    def weights(self) -> dict[str, Weight]:
        """The weights of the plain model of the same function; those that are merged are float32."""
        return self.base | with_adapters(self.model, self.base)


def open_source(path: Path | str, base: Path | str | None = None, *, adapter: bool = False) -> Source:
    """Open a run, a checkpoint or model folder, or an adapter, with the arguments and errors of `find_model`.

    `adapter` takes that of a checkpoint which has the merged model, too.
    """
    found = find_model(adapter_folder(chosen_folder(path)) if adapter else path, base)
    checkpointer = FullModelHFCheckpointer(**{k: v for k, v in found.checkpointer.items() if k != "_component_"})
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args).eval()
    put_saved_adapters(checkpointer, model)
    weights = checkpointer.checked_weights(model)
    if found.adapter is not None:
        make_parameters(model)
        saved = open_adapter(model, found.adapter, checkpointer.layout)
        saved.load(weights)
        weights |= {name: weight.to(weights[name].dtype) for name, weight in saved.trained_base.items()}
    return Source(found, checkpointer, model, weights)
