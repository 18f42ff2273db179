"""Checkpoints in Meta's layout: params.json and consolidated.00.pth."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from torchtune_lite.checkpoint.checkpointer import Checkpointer
from torchtune_lite.checkpoint.files import listed_files, read_json, write_json
from torchtune_lite.checkpoint.hf import FullModelHFCheckpointer, write_hf_model
from torchtune_lite.checkpoint.torch_stream import read_torch, write_torch
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.models import FAMILIES, Family
from torchtune_lite.models.convert import permute_from_meta, permute_to_meta
from torchtune_lite.modules import DecoderConfig


class FullModelMetaCheckpointer(Checkpointer):
    """Reads Meta's downloads; writes the same files, and beside them the Hugging Face layout.

    The second layout lets transformers load the folder and a run resume from it, for twice the disk space; either may
    be deleted. `model_type` must be given, since params.json does not name the family, and so must the model's
    `max_seq_len`. A model split over several consolidated files is refused. Other arguments are those of
    `Checkpointer`.
    """

    _num_layouts = 2

    def _open(self, family: Family | None) -> None:
        if family is None:
            raise ConfigError(
                f"checkpointer.model_type is missing; params.json does not name it (allowed: {', '.join(FAMILIES)})"
            )
        self.family = family
        self._params = read_json(self.checkpoint_dir / "params.json")
        self._file = self._find_file()
        self._files = [self._file]
        shapes = {family.from_meta(name): weight.shape for name, weight in read_torch(self._file).items()}
        try:
            vocab_size, intermediate_dim = shapes["tok_embeddings.weight"][0], shapes["layers.0.mlp.w1.weight"][0]
            self.decoder_args = family.decoder_args_meta(self._params, vocab_size, intermediate_dim)
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

    def _weights(self) -> dict[str, Weight]:
        found = {self.family.from_meta(name): weight for name, weight in read_torch(self._file).items()}
        found.pop(None, None)  # what carries nothing
        return {name: self._permuted(name, weight, permute_from_meta) for name, weight in found.items()}

    def _permuted(self, name: str, weight: Weight, permute: Callable[[Tensor, int], Tensor]) -> Weight:
        heads = {"q_proj": "num_heads", "k_proj": "num_kv_heads"}.get(name.removesuffix(".weight").rpartition(".")[2])
        return replace(weight, read=lambda: permute(weight.read(), self.decoder_args[heads])) if heads else weight

    def _their_name(self, name: str) -> str:
        return self.family.to_meta(name)

    def _write_model(self, folder: Path, config: DecoderConfig, weights: Mapping[str, Weight]) -> None:
        theirs = {
            self.family.to_meta(name): self._permuted(name, weight, permute_to_meta) for name, weight in weights.items()
        }
        write_torch(folder / "consolidated.00.pth", theirs)
        write_json(folder / "params.json", self._params)
        write_hf_model(folder, weights, self.family, self.family.hf_config(config))

    def _readers(self, folder: Path) -> list[Checkpointer]:
        kinds = (FullModelMetaCheckpointer, FullModelHFCheckpointer)
        return [kind(folder, model_type=self.family.name) for kind in kinds]
