"""A GGUF as a model folder to fine-tune: weights dequantised one by one, config.json, tokenizer and chat template."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchtune_lite.checkpoint import publish
from torchtune_lite.checkpoint.formats.files import write_json
from torchtune_lite.checkpoint.formats.hf import write_hf_model
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.checkpoint.model_weights import base_parameters, check_weights
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.architectures import ARCHITECTURES, Architecture
from torchtune_lite.export.gguf.files import FILE_TYPES, library, read_gguf
from torchtune_lite.export.gguf.metadata import Metadata, read_shape
from torchtune_lite.export.gguf.tensors import to_weights
from torchtune_lite.export.gguf.tokenizer_files import read_tokenizer
from torchtune_lite.models import FAMILIES, Family, from_checkpoint
from torchtune_lite.models.families import hf_config
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.utils import counted

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def import_gguf(path: Path, folder: Path, dtype: str | None = None) -> str:
    """Publish `folder`, which must not exist, with the model of a GGUF; return a line on what it is.

    `dtype` is a key of `DTYPES`; None: the file's own where it is fp32 or fp16, which the family must be computed in,
    else bf16. CheckpointError for a file that is damaged, of an architecture that is not served, or holds what is not
    computed here.
    """
    metadata, tensors = read_gguf(path)
    try:
        architecture = _architecture(metadata)
        family, described = _described(architecture, read_shape(architecture, metadata, tensors))
        config = DecoderConfig(**family.decoder_args(described))
        weights = to_weights(architecture, config, tensors)
        with torch.device("meta"):
            check_weights(base_parameters(from_checkpoint(**vars(config))), weights, "its model")
        files, ids = read_tokenizer(metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    kind = DTYPES[dtype] if dtype else _dtype(family, metadata)
    cast = {name: weight.to(kind) for name, weight in weights.items()}
    with publish(folder, num_bytes=sum(weight.num_bytes for weight in cast.values())) as draft:
        write_hf_model(draft, HFLayout(family, config).theirs(cast), described | ids)
        for name, content in files.items():
            write_json(draft / name, content)
    layers = counted(config.num_layers, "layer")
    return f"{family.name}, {layers} of {config.embed_dim}, in {str(kind).removeprefix('torch.')}"


def _architecture(metadata: Metadata) -> Architecture:
    name, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if kind != "model" or name not in ARCHITECTURES:
        what = f"is of type {kind}" if kind != "model" else f"is a {name!r} model"
        raise CheckpointError(f"{what}, which is not served; served are models of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _described(architecture: Architecture, shape: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Return the first family that has models of a shape, and the config.json of this one."""
    for model_type in architecture.model_types:
        family = FAMILIES[model_type]
        described = hf_config(family, DecoderConfig(**{**family.fields, **shape}))
        if not DecoderConfig(**family.decoder_args(described)).differences(dict(shape)):
            return family, described
    raise CheckpointError(f"has a shape that no {architecture.name} model has here")


def _dtype(family: Family, metadata: Metadata) -> torch.dtype:
    kinds = {name: int(library().LlamaFileType[FILE_TYPES[name]]) for name in ("f32", "f16")}
    found = metadata.get("general.file_type")
    if found == kinds["f32"]:
        return torch.float32
    return torch.float16 if found == kinds["f16"] and family.fits_fp16 else torch.bfloat16
