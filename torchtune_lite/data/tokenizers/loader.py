"""Chooses a tokenizer's class by what its file holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_lite.data.tokenizers.files import sniff
from torchtune_lite.data.tokenizers.hf_tokenizer import SAVE_AS_JSON, TOKENIZER_JSON, HuggingFaceModelTokenizer
from torchtune_lite.data.tokenizers.llama3_tokenizer import Llama3Tokenizer
from torchtune_lite.data.tokenizers.model_tokenizer import ModelTokenizer, PromptTemplateArg, TrainOn
from torchtune_lite.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from torchtune_lite.errors import ConfigError, DataError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""The files of a folder by priority, as in transformers."""


def load_tokenizer(
    path: str | Path,
    max_seq_len: int | None = None,
    prompt_template: PromptTemplateArg = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_eos_when_cut: bool = False,
    train_on: TrainOn = "all",
    add_tokens: Sequence[str] | None = None,
) -> ModelTokenizer:
    """Read a tokenizer.json, a SentencePiece model or Llama 3's ranks, told apart by content, or that of a folder.

    `add_tokens` are texts that become tokens of a tokenizer.json; the other arguments are those of `ModelTokenizer`.
    Raise DataError for a file that is none of them, with what it is.
    """
    file, options = Path(path).expanduser(), {"max_seq_len": max_seq_len, "prompt_template": prompt_template}
    options |= {"add_eos_when_cut": add_eos_when_cut, "train_on": train_on}
    if file.is_dir():
        found = [file / name for name in FILES if (file / name).is_file()]
        if not found:
            raise DataError(f"tokenizer.path {path} is a folder without {' or '.join(FILES[:2])}; name the file")
        file = found[0]
    if file.is_file():
        with file.open("rb") as opened:
            found = sniff(opened.read(4096), file)
        if found == "json":
            options |= {"chat_template_kwargs": chat_template_kwargs, "add_tokens": add_tokens}
            return HuggingFaceModelTokenizer(file, **options)
        if add_tokens is not None:
            raise ConfigError(f"tokenizer.add_tokens needs a {TOKENIZER_JSON}, not {file.name}; {SAVE_AS_JSON}")
        if found == "ranks":
            if chat_template_kwargs:
                raise ConfigError("tokenizer.chat_template_kwargs: Llama3Tokenizer has no chat template; leave it out")
            return Llama3Tokenizer(str(file), **options)
    return SentencePieceTokenizer(str(file), chat_template_kwargs=chat_template_kwargs, **options)
