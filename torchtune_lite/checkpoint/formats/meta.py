"""Checkpoints in Meta's layout, params.json and consolidated.00.pth, which are read and not written."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.checkpointer import Checkpointer
from torchtune_lite.checkpoint.formats.files import listed_files, read_json
from torchtune_lite.checkpoint.formats.hf import FullModelHFCheckpointer, hf_files, write_hf_config
from torchtune_lite.checkpoint.formats.rotary_layout import half_split
from torchtune_lite.checkpoint.formats.safetensors_stream import Files
from torchtune_lite.checkpoint.formats.torch_stream import read_torch
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.models import FAMILIES, Family
from torchtune_lite.models.families import IGNORED, hf_config, rename
from torchtune_lite.modules import RopeScaling

log = logging.getLogger("torchtune_lite")


class FullModelMetaCheckpointer(Checkpointer):
    """Read Meta's downloads of Llama; write the Hugging Face layout, which everything else reads.

    The model's `max_seq_len` must be given, since params.json does not name it. A model split over several consolidated
    files is refused. Other arguments are those of `Checkpointer`.
    """

    def _open(self, family: Family | None) -> None:
        self.family = family or next(each for each in FAMILIES.values() if each.meta_keys)
        if not self.family.meta_keys:
            raise ConfigError(f"checkpointer.model_type: Meta published no {self.family.name} model; leave the key out")
        self._params = read_json(self.checkpoint_dir / "params.json")
        self._file = self._find_file()
        self._files = [self._file]
        log.info("checkpoints of %s are written in the Hugging Face layout", self.checkpoint_dir)
        shapes = {self._our_name(name): weight.shape for name, weight in read_torch(self._file).items()}
        try:
            vocab_size, intermediate_dim = shapes["tok_embeddings.weight"][0], shapes["layers.0.mlp.w1.weight"][0]
            self.decoder_args = decoder_args(self._params, vocab_size, intermediate_dim)
        except KeyError as error:
            raise CheckpointError(f"{self.checkpoint_dir}: params.json or {self._file.name} lacks {error}") from error

    def _find_file(self) -> Path:
        if self.checkpoint_files:
            files = listed_files(self.checkpoint_dir, self.checkpoint_files)
        else:
            files = sorted(self.checkpoint_dir.glob("consolidated.*.pth"))
        if not files:
            raise CheckpointError(f"{self.checkpoint_dir}: has no weights (consolidated.00.pth)")
        if len(files) > 1:
            raise CheckpointError(
                f"{self.checkpoint_dir}: the model is split over {len(files)} files, which is not supported; "
                "use its Hugging Face layout"
            )
        return files[0]

    def _our_name(self, theirs: str) -> str | None:
        ours = {meta: name for name, meta in self.family.meta_keys.items()}
        return None if theirs.endswith(IGNORED) else rename(ours, theirs) or theirs

    def _their_name(self, name: str) -> str:
        return rename(self.family.meta_keys, name) or name

    def _weights(self) -> dict[str, Weight]:
        found = {self._our_name(name): weight for name, weight in read_torch(self._file).items()}
        found.pop(None, None)  # what carries nothing
        if self.layout.config.tie_word_embeddings:
            found.pop("output.weight", None)  # the embedding once more
        return {name: self._half_split(name, weight) for name, weight in found.items()}

    def _half_split(self, name: str, weight: Weight) -> Weight:
        heads = {"q_proj": "num_heads", "k_proj": "num_kv_heads"}.get(name.removesuffix(".weight").rpartition(".")[2])
        return weight.mapped(partial(half_split, num_heads=self.decoder_args[heads])) if heads else weight

    def model_files(self, folder: Path, weights: Mapping[str, Weight]) -> Files:
        return hf_files(folder, self.layout.theirs(weights))

    def write_config(self, folder: Path, files: Files) -> None:
        write_hf_config(folder, files, hf_config(self.family, self.layout.config))

    def _readers(self, folder: Path) -> list[Checkpointer]:
        return [FullModelHFCheckpointer(folder)]


def decoder_args(params: Mapping[str, Any], vocab_size: int, intermediate_dim: int) -> dict[str, Any]:
    """Read the fields of `DecoderConfig` from Meta's params.json, which leaves two to the shapes of the weights."""
    scaling = RopeScaling("llama3", factor=params.get("rope_scaling_factor") or 8.0, original_len=8192)  # of Llama 3.1
    return {
        "vocab_size": vocab_size,
        "num_layers": params["n_layers"],
        "num_heads": params["n_heads"],
        "num_kv_heads": params.get("n_kv_heads") or params["n_heads"],
        "embed_dim": params["dim"],
        "intermediate_dim": intermediate_dim,
        "norm_eps": params["norm_eps"],
        "rope_base": params.get("rope_theta", 10_000.0),
        "rope_scaling": scaling if params.get("use_scaled_rope") else None,
    }
