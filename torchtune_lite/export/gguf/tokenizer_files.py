"""The tokenizer of a GGUF as files of Hugging Face: tokenizer.json, tokenizer_config.json, generation_config.json."""

from typing import Any

from torchtune_lite.data.tokenizers.sentencepiece_export import (
    CONTROL,
    TOKENIZER_CLASS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    bos_before,
    bpe_json,
    metaspace,
)
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.metadata import Metadata
from torchtune_lite.export.gguf.pre_tokenizers import NAMES, steps_of

NFC = ("qwen2", "deepseek-r1-qwen")
"""The names of tokenizers that compose characters first, which a GGUF does not say."""
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
"""The names of special tokens in transformers and the keys of their ids in a GGUF."""


def read_tokenizer(metadata: Metadata) -> tuple[dict[str, dict[str, Any]], dict[str, int | None]]:
    """Return the files by name with their contents, and the ids that config.json has of special tokens.

    CheckpointError for a kind of tokenizer, or a way to split texts, that is not known here.
    """
    kind, texts = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    write = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    if write is None or not texts:
        raise CheckpointError(f"has a tokenizer of the kind {kind!r}; known are gpt2 (byte-level BPE) and llama")
    ids = {name: metadata[f"tokenizer.ggml.{key}"] for name, key in IDS.items() if f"tokenizer.ggml.{key}" in metadata}
    if wrong := {name: i for name, i in ids.items() if not 0 <= i < len(texts)}:
        raise CheckpointError(f"has the special tokens {wrong}, of which it has no text")
    bos = ids.get("bos") if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") else None
    config: dict[str, Any] = {"tokenizer_class": TOKENIZER_CLASS, "add_bos_token": bos is not None}
    config |= {f"{name}_token": texts[i] for name, i in ids.items()}
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    of_config = {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}  # null: not the class's default
    files = {"tokenizer.json": write(metadata, texts, bos), "tokenizer_config.json": config}
    return files | {"generation_config.json": {key: i for key, i in of_config.items() if i is not None}}, of_config


def _types(metadata: Metadata, texts: list[str]) -> list[int]:
    return metadata.get("tokenizer.ggml.token_type") or [1] * len(texts)


def _byte_level(metadata: Metadata, texts: list[str], bos: int | None) -> dict[str, Any]:
    """Write byte-level BPE; tokens that only fill the embedding up are left out."""
    types, name = _types(metadata, texts), metadata.get("tokenizer.ggml.pre", "default")
    pre_tokenizer = steps_of(name)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": kind != USER_DEFINED}
            for i, (text, kind) in enumerate(zip(texts, types, strict=True))
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if name in NFC else None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None if bos is None else bos_before(texts[bos], bos),
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": NAMES[name].ignore_merges,
            "vocab": {text: i for i, (text, kind) in enumerate(zip(texts, types, strict=True)) if kind != UNUSED},
            "merges": [merge.split(" ", 1) for merge in metadata.get("tokenizer.ggml.merges", [])],
        },
    }


def _sentencepiece(metadata: Metadata, texts: list[str], bos: int | None) -> dict[str, Any]:
    """Write SentencePiece's BPE, whose merges follow from the scores."""
    types = _types(metadata, texts)
    texts = [text.replace(" ", "▁") if kind == USER_DEFINED else text for text, kind in zip(texts, types, strict=True)]
    scores = metadata.get("tokenizer.ggml.scores") or [-float(i) for i in range(len(texts))]
    last = max(i for i, kind in enumerate(types) if kind != UNUSED)  # what follows fills the embedding up
    prefixes = metadata.get("tokenizer.ggml.add_space_prefix", True)
    return bpe_json(
        list(zip(texts, scores, types, strict=True))[: last + 1],
        bos_id=bos,
        byte_fallback=any(text == "<0x0A>" for text in texts),
        pre_tokenizer=metaspace("▁", "always") if prefixes else None,
    )
