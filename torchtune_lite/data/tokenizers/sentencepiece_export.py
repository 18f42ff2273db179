"""Writes a SentencePiece model as tokenizer.json.

transformers (5) converts a tokenizer.model that stands alone, but orders its merges by id, not by score: where the two
disagree, as for the pieces of several spaces in Llama 2's and Mistral's models, so do its tokens.
"""

from collections.abc import Sequence
from typing import Any

from torchtune_lite.data.tokenizers.chat_template import ChatTemplate
from torchtune_lite.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""In transformers: takes a tokenizer.json as it is, where LlamaTokenizer splits texts its own way."""

BPE = 2  # sentencepiece_model.proto: TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type


def as_tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """Write the vocabulary, its merges and how a text is split, with BOS before it, for `TOKENIZER_CLASS`.

    None for a model that is not BPE, or one that changes spaces or characters before it splits a text. Merges are in
    the order of the scores of the pieces that they make, the highest first. A text is prefixed as it was in training:
    with a chat template as transformers does it, else as SentencePiece does, also where it starts with a space.
    """
    model = plain_bpe(tokenizer)
    if model is None:
        return None
    return bpe_json(
        [(piece.piece, piece.score, piece.type) for piece in model.pieces],
        bos_id=tokenizer.bos_id,
        byte_fallback=model.trainer_spec.byte_fallback,
        pre_tokenizer=_pre_tokenizer(tokenizer, model.normalizer_spec.add_dummy_prefix),
    )


def plain_bpe(tokenizer: SentencePieceTokenizer) -> Any | None:
    """Return the model as its fields, if it is BPE and changes no character of a text; None otherwise."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:  # protobuf is missing, or too old
        return None
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialized())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != BPE or trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        return None
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        return None
    return model


def bpe_json(
    pieces: Sequence[tuple[str, float, int]],
    *,
    bos_id: int | None,
    byte_fallback: bool,
    pre_tokenizer: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write a tokenizer.json of SentencePiece's pieces: text, score and type each, in the order of their ids.

    `bos_id` is put before a text; None: nothing is.
    """
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    outside = {CONTROL, UNKNOWN, USER_DEFINED, UNUSED, BYTE}
    by_score = sorted((piece for piece in pieces if piece[2] not in outside), key=lambda piece: -piece[1])
    merges = []
    for piece, _, _ in by_score:
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if pre_tokenizer is not None:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "normalized": own, "special": not own}
            for i, (text, _, kind) in enumerate(pieces)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
            for own in [kind == USER_DEFINED]  # found in a text whose spaces are ▁
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None if bos_id is None else bos_before(pieces[bos_id][0], bos_id),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((text for text, _, kind in pieces if kind == UNKNOWN), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def bos_before(bos: str, bos_id: int) -> dict[str, Any]:
    """Write the post-processor that puts BOS before a text."""
    begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _pre_tokenizer(tokenizer: SentencePieceTokenizer, prefixes: bool) -> dict[str, Any]:
    """Say where ▁ is put before a text, whose spaces are ▁ already; `prefixes`: whether the model does so at all."""

    spaces = metaspace("▁", tokenizer.prepend_scheme if prefixes else "never")  # unless the text starts with ▁
    if not prefixes or isinstance(tokenizer.prompt_template, ChatTemplate):
        return spaces
    return {"type": "Sequence", "pretokenizers": [metaspace(" ", "first"), spaces]}  # the first one sees no space


def metaspace(replacement: str, scheme: str) -> dict[str, Any]:
    """Write the pre-tokenizer that puts `replacement` before a text: "always", "first" or "never"."""
    return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": False}
