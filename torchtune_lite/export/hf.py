"""A folder in the layout of Hugging Face: the merged model, with its tokenizer."""

from collections.abc import Mapping
from pathlib import Path

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.tokenizer import COPIED, TOKENIZER_FILES, copy_files
from torchtune_lite.export.source import Source
from torchtune_lite.modules import TransformerDecoder


def write_hf(source: Source, folder: Path, plain: TransformerDecoder) -> Mapping[str, Weight]:
    """Write the merged model in the dtype of its base, weight by weight; return what was written, by our names."""
    weights = {name: weight.to(source.base[name].dtype) for name, weight in source.weights.items()}
    return write_folder(source, folder, weights, plain)


def write_folder(
    source: Source, folder: Path, weights: Mapping[str, Weight], plain: TransformerDecoder
) -> Mapping[str, Weight]:
    """Write `weights` by our names, with the base's small files and the tokenizer; return them as read."""
    source.checkpointer.write_model(folder, weights)
    write_small_files(source, folder)
    return FullModelHFCheckpointer(folder).checked_weights(plain)


def write_small_files(source: Source, folder: Path) -> None:
    """Put the small files of the source's base into a folder, and the tokenizer's in the place of the base's."""
    copy_files(source.found.base, folder, COPIED)
    write_tokenizer(source, folder)


def write_tokenizer(source: Source, folder: Path) -> None:
    """Put the tokenizer's files into a folder, in the place of those that are there."""
    for file in [file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)]:
        file.unlink()
    copy_files(source.tokenizer_folder, folder, TOKENIZER_FILES)
