"""Byte-level BPE in two files, vocab.json and merges.txt, made one: the content of a tokenizer.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.data.tokenizers.cuts import QWEN
from torchtune_lite.errors import DataError

MERGES = "merges.txt"
WORDS = {"Qwen2Tokenizer": QWEN}
"""How a `tokenizer_class` of transformers splits text into words, which neither file tells."""


def from_vocabulary(vocabulary: Mapping[str, int], merges: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write a vocabulary and its merges as a tokenizer.json has them, with the added tokens of tokenizer_config.json.

    Raise DataError where `config` names no class of which the way to split text is known.
    """
    name = config.get("tokenizer_class", "no tokenizer_class").removesuffix("Fast")
    if name not in WORDS:
        raise DataError(
            f"{merges} and its vocabulary do not say how text is split into words ({name}); fetch the "
            "tokenizer.json of the same model"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": WORDS[name]}, "behavior": "Isolated", "invert": False}
    lines = merges.read_text(encoding="utf-8").split("\n")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        flags | {key: value for key, value in token.items() if key in (*flags, "content")} | {"id": int(index)}
        for index, token in (config.get("added_tokens_decoder") or {}).items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [line for line in lines[lines[0].startswith("#version") :] if line],
        },
    }
