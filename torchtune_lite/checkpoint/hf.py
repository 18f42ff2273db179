"""Checkpoints in the layout of Hugging Face: config.json and safetensors, whole or in shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.checkpointer import Checkpointer
from torchtune_lite.checkpoint.files import INDEX, hf_weight_files, listed_files, read_files, read_json, write_json
from torchtune_lite.checkpoint.safetensors_stream import write_safetensors_files
from torchtune_lite.checkpoint.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import FAMILIES, Family
from torchtune_lite.modules import DecoderConfig


class FullModelHFCheckpointer(Checkpointer):
    """Reads and writes folders that `transformers.AutoModelForCausalLM.from_pretrained` loads as they are.

    Reads safetensors, or `pytorch_model*.bin` without running code; writes safetensors, divided into files as the
    base is. Arguments are those of `Checkpointer`.
    """

    def _open(self, family: Family | None) -> None:
        self._config = read_json(self.checkpoint_dir / "config.json")
        self.family = family or self._find_family()
        if (kind := self._config.get("model_type")) != self.family.hf_model_type:
            raise CheckpointError(
                f"{self.checkpoint_dir}/config.json is of a {kind!r} model, not of {self.family.name}"
            )
        if "quantization_config" in self._config:
            raise CheckpointError(f"{self.checkpoint_dir} is a quantised export; load an fp32, bf16 or fp16 checkpoint")
        try:
            self.decoder_args = self.family.decoder_args(self._config)
        except KeyError as error:
            raise CheckpointError(f"{self.checkpoint_dir}/config.json lacks {error}") from error
        except ValueError as error:
            raise CheckpointError(f"{self.checkpoint_dir}: {error}") from error
        given = self.checkpoint_files
        if (elsewhere := self._config.pop("transformers_weights", None)) and not given:
            raise CheckpointError(
                f"{self.checkpoint_dir}/config.json names the weights that transformers reads, {elsewhere!r}; "
                "name the files in checkpointer.checkpoint_files"
            )
        self._files = listed_files(self.checkpoint_dir, given) if given else hf_weight_files(self.checkpoint_dir)
        self._shard_of: dict[str, str] = {}

    def _find_family(self) -> Family:
        kind = self._config.get("model_type")
        for family in FAMILIES.values():
            if family.hf_model_type == kind:
                return family
        known = sorted({family.hf_model_type for family in FAMILIES.values()})
        raise CheckpointError(
            f"{self.checkpoint_dir}/config.json has model_type {kind!r}; known are {', '.join(known)}"
        )

    def _weights(self) -> dict[str, Weight]:
        found = {}
        for file, weights in read_files(self._files).items():
            for theirs, weight in weights.items():
                if name := self.family.from_hf(theirs):
                    found[name] = weight
                    self._shard_of[theirs] = file
        return found

    def _their_name(self, name: str) -> str:
        return self.family.to_hf(name)

    def _write_model(self, folder: Path, config: DecoderConfig, weights: Mapping[str, Weight]) -> None:
        write_hf_model(folder, weights, self.family, self._config, self._shard_of)

    def _readers(self, folder: Path) -> list[Checkpointer]:
        return [FullModelHFCheckpointer(folder, model_type=self.family.name)]


def write_hf_model(
    folder: Path,
    weights: Mapping[str, Weight],
    family: Family,
    config: Mapping[str, Any],
    shard_of: Mapping[str, str] | None = None,
) -> None:
    """Writes `weights` by our names, and `config` with their dtype.

    `shard_of` gives the file of each weight by its Hugging Face name, whose name stays where transformers reads it as
    one of several; without it, or with one file, it is model.safetensors.
    """
    dtype = str(weights["tok_embeddings.weight"].dtype).removeprefix("torch.")
    weights = {family.to_hf(name): weight for name, weight in weights.items()}
    files = sorted(set((shard_of or {}).values()))
    if len(files) > 1:
        names = {
            file: file.replace("pytorch_model", "model").removesuffix(".bin").removesuffix(".safetensors")
            for file in files
        }
        if "model" in names.values() or len(set(names.values())) < len(files):  # which would be read as the whole model
            names = {file: f"model-{i:05}-of-{len(files):05}" for i, file in enumerate(files, start=1)}
        weight_map = {name: f"{names[shard_of[name]]}.safetensors" for name in weights}
        total_size = sum(weight.num_bytes for weight in weights.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})
    else:
        weight_map = dict.fromkeys(weights, "model.safetensors")
    shards: dict[Path, dict[str, Weight]] = {folder / file: {} for file in sorted(set(weight_map.values()))}
    for name, weight in weights.items():
        shards[folder / weight_map[name]][name] = weight
    write_safetensors_files(shards)
    write_json(folder / "config.json", {**config, "dtype": dtype, "torch_dtype": dtype})  # transformers 5; 4
