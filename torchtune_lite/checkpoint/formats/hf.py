"""Checkpoints in the layout of Hugging Face: config.json and safetensors, whole or in shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.checkpointer import Checkpointer
from torchtune_lite.checkpoint.formats.files import (
    INDEX,
    hf_weight_files,
    listed_files,
    read_files,
    read_json,
    write_json,
)
from torchtune_lite.checkpoint.formats.safetensors_stream import Files, write_safetensors_files
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import FAMILIES, NOT_SERVED, Family


class FullModelHFCheckpointer(Checkpointer):
    """Read and write folders that `transformers.AutoModelForCausalLM.from_pretrained` loads as they are.

    Read safetensors, or `pytorch_model*.bin` without running code; write safetensors, divided into files as the base
    is. Of a model that sees images, too, the text part is read, and the rest is carried to each checkpoint. Arguments
    are those of `Checkpointer`.
    """

    def _open(self, family: Family | None) -> None:
        self._config = read_json(self.checkpoint_dir / "config.json")
        text = self._config.get("text_config")
        self._is_within = isinstance(text, Mapping)  # a larger model, which says itself whether its output is tied
        text = {**self._config, **text} if self._is_within else self._config
        self.family = self._find_family(text, family)
        if method := quantization(self._config):
            raise CheckpointError(
                f"{self.checkpoint_dir} is a quantised export ({method}); load an fp32, bf16 or fp16 checkpoint"
            )
        try:
            self.decoder_args = self.family.decoder_args(text) | classifier_args(self._config)
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

    def _find_family(self, text: Mapping[str, Any], given: Family | None) -> Family:
        kind, where = str(text.get("model_type")), f"{self.checkpoint_dir}/config.json"
        family = FAMILIES.get(kind)
        if family is None:
            why = f": {NOT_SERVED[kind]}" if kind in NOT_SERVED else ""
            names = self._config.get("architectures")
            name = names[0] if isinstance(names, list) and names else "a model"
            raise CheckpointError(
                f"{where} is of {name} (model_type {kind!r}), which is not served{why}; served are "
                f"{', '.join(sorted(FAMILIES))}"
            )
        if given is not None and given is not family:
            raise CheckpointError(
                f"{where} is of a {kind!r} model, not of {given.name}; leave checkpointer.model_type out"
            )
        return family

    def _weights(self) -> dict[str, Weight]:
        files = read_files(self._files)
        self._shard_of = {name: file for file, weights in files.items() for name in weights}
        try:
            return self.layout.ours({name: weight for weights in files.values() for name, weight in weights.items()})
        except ValueError as error:
            raise CheckpointError(f"{self.checkpoint_dir}: {error}") from error

    def _their_name(self, name: str) -> str:
        return self.layout.their_name(name)

    def model_files(self, folder: Path, weights: Mapping[str, Weight]) -> Files:
        return hf_files(folder, self.layout.theirs(weights), self._shard_of)

    def write_config(self, folder: Path, files: Files) -> None:
        write_hf_config(folder, files, self.model_config)

    @property
    def model_config(self) -> dict[str, Any]:
        """The config.json of a model of `layout`, made from that of the checkpoint."""
        shape, values = self.layout.config, dict(self._config)
        if shape.tie_word_embeddings != self.decoder_args["tie_word_embeddings"]:
            values["tie_word_embeddings"] = shape.tie_word_embeddings
        if shape.vocab_size != self.decoder_args["vocab_size"]:
            values["vocab_size"] = shape.vocab_size
            if self._is_within:
                values["text_config"] = {**values["text_config"], "vocab_size": shape.vocab_size}
        return values

    def _readers(self, folder: Path) -> list[Checkpointer]:
        return [FullModelHFCheckpointer(folder)]


def quantization(config: Mapping[str, Any]) -> str | None:
    """Return the method of a quantised export, None for a plain model."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    return str(settings.get("quant_method", "unnamed")) if isinstance(settings, Mapping) else repr(settings)


def classifier_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `DecoderConfig` that make a classifier of its config.json one."""
    if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return {}
    labels = config.get("num_labels") or len(config.get("id2label") or range(2))  # two are the default of transformers
    return {"num_classes": labels, "tie_word_embeddings": False}


def write_hf_model(folder: Path, weights: Mapping[str, Weight], config: Mapping[str, Any]) -> None:
    """Write `weights` by Hugging Face's names, and `config` with the dtype of the embedding."""
    files = hf_files(folder, weights)
    write_safetensors_files(files)
    write_hf_config(folder, files, config)


def hf_files(folder: Path, weights: Mapping[str, Weight], shard_of: Mapping[str, str] | None = None) -> Files:
    """Deal weights by Hugging Face's names out to the files of a folder.

    `shard_of` gives the file of each weight, whose name stays where transformers reads it as one of several; without
    it, or with one file, it is model.safetensors.
    """
    files = sorted({file for name, file in (shard_of or {}).items() if name in weights})
    if len(files) <= 1:
        return {folder / "model.safetensors": dict(weights)}
    names = {
        file: file.replace("pytorch_model", "model").removesuffix(".bin").removesuffix(".safetensors") for file in files
    }
    if "model" in names.values() or len(set(names.values())) < len(files):  # which would be read as the whole model
        names = {file: f"model-{i:05}-of-{len(files):05}" for i, file in enumerate(files, start=1)}
    shards: dict[Path, dict[str, Weight]] = {folder / f"{name}.safetensors": {} for name in sorted(names.values())}
    for name, weight in weights.items():
        shards[folder / f"{names[shard_of.get(name, files[-1])]}.safetensors"][name] = weight
    return shards


def write_hf_config(folder: Path, files: Files, config: Mapping[str, Any]) -> None:
    """Write what goes with the files of a model: `config` with the dtype of the embedding, and of several, an index."""
    weights = {name: weight for each in files.values() for name, weight in each.items()}
    if len(files) > 1:
        weight_map = {name: path.name for path, each in files.items() for name in each}
        total_size = sum(weight.num_bytes for weight in weights.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})
    embedding = next(weight for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
    dtype = str(embedding.dtype).removeprefix("torch.")
    write_json(folder / "config.json", {**config, "dtype": dtype, "torch_dtype": dtype})  # transformers 5; 4
