"""A model as one GGUF file."""

from collections.abc import Mapping
from pathlib import Path

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.export.gguf.architectures import architecture_of
from torchtune_lite.export.gguf.files import FILE_TYPES, library, read_gguf, write_gguf
from torchtune_lite.export.gguf.metadata import write_shape
from torchtune_lite.export.gguf.tensors import to_tensors, to_weights
from torchtune_lite.export.gguf.vocabulary import write_vocabulary
from torchtune_lite.export.source import Source
from torchtune_lite.utils import get_logger

log = get_logger()


def write_model(source: Source, path: Path, kind: str) -> Mapping[str, Weight]:
    """Write a model with its tokenizer to a new file, tensor by tensor; return what was written, by our names.

    `kind` is one of `files.KINDS`. ConfigError for a model or tokenizer that llama.cpp would compute otherwise.
    """
    gguf, architecture, config = library(), architecture_of(source.family.model_type), source.config
    architecture.check(config)
    if (context := architecture.context_length(config)) < config.max_seq_len:
        log.warning(
            "llama.cpp computes no windows in %s models: the context is %d tokens, those of the window, not %d",
            *(architecture.name, context, config.max_seq_len),
        )
    general = {"type": "model", "name": path.stem, "file_type": int(gguf.LlamaFileType[FILE_TYPES[kind]])}
    if kind == "q8_0":
        general["quantization_version"] = gguf.GGML_QUANT_VERSION
    metadata = {f"general.{key}": value for key, value in general.items()}
    metadata |= write_shape(architecture, config) | write_vocabulary(source.tokenizer, config.vocab_size)
    write_gguf(path, architecture.name, metadata, to_tensors(architecture, config, source.weights), kind)
    _, tensors = read_gguf(path)
    return to_weights(architecture, config, tensors)
