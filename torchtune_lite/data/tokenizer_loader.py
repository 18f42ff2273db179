"""Chooses a tokenizer's class by what its file holds."""

from pathlib import Path

from torchtune_lite.data.hf_tokenizer import HuggingFaceModelTokenizer
from torchtune_lite.data.llama3_tokenizer import Llama3Tokenizer
from torchtune_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from torchtune_lite.data.tokenizer_files import sniff
from torchtune_lite.data.tokenizers import ModelTokenizer, PromptTemplateArg
from torchtune_lite.errors import DataError

FILES = ("tokenizer.json", "tokenizer.model")
"""Which file of a folder is read, the first that is there: as in transformers."""


def load_tokenizer(
    path: str | Path, max_seq_len: int | None = None, prompt_template: PromptTemplateArg = None
) -> ModelTokenizer:
    """Reads a tokenizer.json, a SentencePiece model or Llama 3's ranks, told apart by content, or that of a folder.

    Raises DataError for a file that is none of them, with what it is.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        found = [file / name for name in FILES if (file / name).is_file()]
        if not found:
            raise DataError(f"tokenizer.path {path} is a folder without {' or '.join(FILES)}; name the file")
        file = found[0]
    if file.is_file():
        with file.open("rb") as opened:
            found = sniff(opened.read(4096), file)
        if found == "json":
            return HuggingFaceModelTokenizer(file, max_seq_len=max_seq_len, prompt_template=prompt_template)
        if found == "ranks":
            return Llama3Tokenizer(str(file), max_seq_len=max_seq_len, prompt_template=prompt_template)
    return SentencePieceTokenizer(str(file), max_seq_len, prompt_template)
