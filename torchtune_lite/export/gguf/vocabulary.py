"""A tokenizer as the keys of a GGUF: tokens, scores or merges, special tokens, chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtune_lite.data import (
    ChatTemplate,
    HuggingFaceModelTokenizer,
    ModelTokenizer,
    SentencePieceTokenizer,
)
from torchtune_lite.data.tokenizers.cuts import flat_steps
from torchtune_lite.data.tokenizers.files import read_json
from torchtune_lite.data.tokenizers.sentencepiece_export import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    plain_bpe,
)
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.gguf.metadata import Metadata
from torchtune_lite.export.gguf.pre_tokenizers import name_of
from torchtune_lite.utils import get_logger

Token = tuple[str, float, int]
"""Text, score and type; the types are SentencePiece's."""

log = get_logger()


def write_vocabulary(tokenizer: ModelTokenizer, vocab_size: int) -> Metadata:
    """Return the keys of a tokenizer whose model embeds `vocab_size` tokens.

    Of the tokens that end a text, EOS is the one that ends a turn of the chat template, so that an answer stops.
    ConfigError for a tokenizer that llama.cpp would split texts of otherwise.
    """
    keys = _of_sentencepiece if isinstance(tokenizer, SentencePieceTokenizer) else _of_json
    if not isinstance(tokenizer, SentencePieceTokenizer | HuggingFaceModelTokenizer):
        raise ConfigError(
            f"{tokenizer.path} is neither a tokenizer.json nor a SentencePiece model; put the model's own beside it"
        )
    values, tokens = keys(tokenizer)
    tokens += [(f"[PAD{i}]", -1000.0, UNUSED) for i in range(len(tokens), vocab_size)]
    values["tokens"], scores, values["token_type"] = (list(column) for column in zip(*tokens, strict=True))
    if values["model"] == "llama":
        values["scores"] = scores
    turn_end = tokenizer.eos_id if tokenizer.turn_end is None else tokenizer.turn_end
    values["eos_token_id"] = values["eot_token_id"] = turn_end
    if tokenizer.bos_id is not None:
        values["bos_token_id"] = tokenizer.bos_id
    if tokenizer.pad_id not in (tokenizer.eos_id, turn_end) and tokens[tokenizer.pad_id][2] != UNKNOWN:
        values["padding_token_id"] = tokenizer.pad_id
    if unknown := [i for i, (_, _, kind) in enumerate(tokens) if kind == UNKNOWN]:
        values["unknown_token_id"] = unknown[0]
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if (template := chat_template_of(tokenizer)) is not None:
        named["tokenizer.chat_template"] = template
    return named


def chat_template_of(tokenizer: ModelTokenizer) -> str | None:
    """Return the chat template of a tokenizer in Jinja, a text template's too; None where it has none that can be."""
    template = tokenizer.prompt_template
    if template is None or isinstance(template, ChatTemplate):
        return template and template.source
    if (source := as_chat_template(tokenizer)) is None:
        log.warning("%s cannot be written as a chat template, so the file has none", type(template).__name__)
    return source


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> tuple[Metadata, list[Token]]:
    model = plain_bpe(tokenizer)
    if model is None:
        raise ConfigError(
            f"{tokenizer.path} is not a BPE model, or changes characters before it splits a text; llama.cpp does not"
        )
    tokens = [(_spaced(piece.piece, piece.type), piece.score, piece.type) for piece in model.pieces]
    scheme = tokenizer.prepend_scheme if model.normalizer_spec.add_dummy_prefix else "never"
    add_bos = read_json(Path(tokenizer.path).expanduser().parent / "tokenizer_config.json").get("add_bos_token", True)
    return _llama(tokenizer, scheme, add_bos), tokens


def _of_json(tokenizer: HuggingFaceModelTokenizer) -> tuple[Metadata, list[Token]]:
    content = json.loads(tokenizer.tokenizer.to_str())
    model, steps = content["model"], flat_steps(content["pre_tokenizer"])
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if model["type"] != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise ConfigError(
            f"{tokenizer.path} is {model['type']} and not BPE over bytes, which llama.cpp would split otherwise"
        )
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]

    def encode(text: str) -> Sequence[int]:
        return tokenizer.tokenizer.encode(text).ids

    add_bos = tokenizer.bos_id is not None and encode("a")[:1] == [tokenizer.bos_id]
    if byte_level:
        values = {"model": "gpt2", "pre": name_of(content, encode), "add_bos_token": add_bos}
        values["merges"] = [" ".join(merge) for merge in merges]
        return values, _tokens(content, {})
    ranks = {"".join(merge): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
    return _llama(tokenizer, _scheme(tokenizer, content, steps), add_bos), _tokens(content, ranks)


def _scheme(tokenizer: HuggingFaceModelTokenizer, content: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Say where a space is put before a text, in the words of Metaspace."""
    if any(step["type"] == "Prepend" for step in flat_steps(content["normalizer"])):
        return "always"
    return next((step["prepend_scheme"] for step in steps if step["type"] == "Metaspace"), "never")


def _tokens(content: dict[str, Any], scores: dict[str, float]) -> list[Token]:
    """List the tokens of a tokenizer.json by their ids; a score is the place of the merge that makes the token."""
    model, added = content["model"], {token["id"]: token for token in content["added_tokens"]}
    texts = {i: text for text, i in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    tokens: list[Token] = []
    for i in range(max(texts) + 1):
        text = texts.get(i)
        if text is None:
            tokens.append((f"[PAD{i}]", -1000.0, UNUSED))
        elif text == model.get("unk_token"):
            tokens.append((text, 0.0, UNKNOWN))
        elif i in added and added[i]["special"]:
            tokens.append((text, -1000.0, CONTROL))
        elif i in added:
            tokens.append((_spaced(text, USER_DEFINED), -1000.0, USER_DEFINED))
        elif model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            tokens.append((text, 0.0, BYTE))
        else:
            tokens.append((text, scores.get(text, 0.0), NORMAL))
    return tokens


def _spaced(text: str, kind: int) -> str:
    """Return a token as llama.cpp looks for it: one that is found in a text before its spaces are ▁ has spaces."""
    return text.replace("▁", " ") if kind == USER_DEFINED else text


def _llama(tokenizer: ModelTokenizer, scheme: str, add_bos: bool) -> Metadata:
    """Return the keys of SentencePiece's kind: a space is put before each text between special tokens, or not."""
    prefixes = scheme == "always" or (scheme == "first" and tokenizer.prompt_template is None)
    return {"model": "llama", "pre": "default", "add_space_prefix": prefixes, "add_bos_token": bool(add_bos)}
