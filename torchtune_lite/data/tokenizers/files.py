"""The files of a tokenizer: which kind one is, and the special tokens that stand beside it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names under which transformers hands special tokens to a chat template."""

FORMATS = {
    "sentencepiece": "a SentencePiece model ('tokenizer.model')",
    "json": "a JSON file",
    "ranks": "a list of byte-pair ranks (Llama 3's 'tokenizer.model')",
}
READ_BY = {
    "sentencepiece": "use torchtune_lite.data.SentencePieceTokenizer",
    "json": "use torchtune_lite.data.HuggingFaceModelTokenizer for a tokenizer.json",
    "ranks": "use torchtune_lite.data.Llama3Tokenizer",
}


def read_tokenizer_file(path: Path, wanted: str) -> bytes:
    """Read a tokenizer's file of the format `wanted`, a key of `FORMATS`.

    Raise DataError for one that is missing, of another format, or none: a git-lfs pointer or an HTML page.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"tokenizer.path {path}: {error.strerror or error}") from None
    found = sniff(data, path)
    if wanted == "sentencepiece" and not data:
        raise not_readable(path, data, wanted)
    if found != wanted:
        raise DataError(f"tokenizer.path {path} is {FORMATS[found]}, not {FORMATS[wanted]}; {READ_BY[found]}")
    return data


def sniff(data: bytes, path: Path) -> str:
    """Tell the format of a tokenizer's file by how it starts; DataError for a pointer or a page in its place."""
    head = data[:200].lstrip()
    if head.lower().startswith(b"version https://git-lfs"):
        raise DataError(
            f"tokenizer.path {path} is a git-lfs pointer ({counted(len(data), 'byte')}), not the file; "
            "run 'git lfs pull'"
        )
    if head.startswith(b"<"):
        raise DataError(
            f"tokenizer.path {path} is an HTML page, not the file; the download was refused, log in and fetch it again"
        )
    if head.startswith(b"{"):
        return "json"
    return "ranks" if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", head) else "sentencepiece"


def not_readable(path: Path, data: bytes, wanted: str, why: Any = "") -> DataError:
    """Make the error for a file that starts like its format and cannot be read."""
    reason = f": {' '.join(str(why).split())[:120]}" if why else ""
    return DataError(
        f"tokenizer.path {path} is not {FORMATS[wanted]} or is cut off ({counted(len(data), 'byte')}){reason}; "
        "fetch the file again"
    )


def read_json(path: Path | None) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file, DataError where there is something else in it."""
    if path is None or not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; fetch the file again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object; fetch the file again")
    return value


def special_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each special token that is set, by its name in `SPECIAL_TOKENS`.

    As in transformers, special_tokens_map.json counts where tokenizer_config.json lists no added tokens.
    """
    values = dict(tokenizer_config)
    if "added_tokens_decoder" not in tokenizer_config:
        values |= read_json(folder / "special_tokens_map.json")
    found = {}
    for name in SPECIAL_TOKENS:
        value = values.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise DataError(f"{folder / 'tokenizer_config.json'}: {name} must be text or null, got {text!r}")
        if text:
            found[name] = text
    return found


def added_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of the tokens that were added beside a SentencePiece model, by their text."""
    listed = tokenizer_config.get("added_tokens_decoder") or {}
    if listed:
        return {token["content"]: int(index) for index, token in listed.items()}
    return read_json(folder / "added_tokens.json")


def prepend_scheme(tokenizer_config: Mapping[str, Any]) -> str:
    """Tell where transformers' LlamaTokenizer puts a space before a chat: "first", "always" or "never".

    "first": before a text that starts without a special token; "always" (legacy): before each text between them, too.
    """
    if tokenizer_config.get("add_prefix_space") is False:
        return "never"
    return "always" if tokenizer_config.get("legacy") else "first"


def ids(value: Any) -> list[int]:
    """Read what a config may give as one id, a list of them, or null."""
    return value if isinstance(value, list) else [] if value is None else [value]


def guard(pieces: Iterable[str]) -> str:
    """Find a character that no longer piece holds, and so joins with nothing.

    Put before a text and taken off its tokens, it keeps a tokenizer from putting a space there.
    """
    pieces, guards = list(pieces), ("\n", "\ue000")
    return next((each for each in guards if not any(each in piece and each != piece for piece in pieces)), guards[0])


def leads_out(file: Path) -> Path | None:
    """Return what a file is a link to, where that lies outside of its folder; None for a file of the folder itself.

    The files of a snapshot in the cache of the Hugging Face hub are links to the blobs of their repository, and count
    as the folder's own. Text of a file elsewhere must not get into a checkpoint, which people publish.
    """
    folder, target = file.parent.resolve(), file.resolve()
    own = [folder]
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        own.append(folder.parent.parent / "blobs")
    return None if any(target.is_relative_to(each) for each in own) else target
