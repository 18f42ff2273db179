"""Writes a SentencePiece model as tokenizer.json.

transformers (5) converts a tokenizer.model that stands alone, but orders its merges by id, not by score: where the two
disagree, as for the pieces of several spaces in Llama 2's and Mistral's models, so do its tokens.
"""

from typing import Any

from torchtune_lite.data.tokenizers.chat_template import ChatTemplate
from torchtune_lite.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""In transformers: takes a tokenizer.json as it is, where LlamaTokenizer splits texts its own way."""

BPE = 2  # sentencepiece_model.proto: TrainerSpec.ModelType
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # ModelProto.SentencePiece.Type
UNKNOWN = 2


def as_tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """Write the vocabulary, its merges and how a text is split, with BOS before it, for `TOKENIZER_CLASS`.

    None for what is no BPE model, or one that changes spaces or characters before it splits a text. A merge comes the
    sooner the higher the score of the piece that it makes. A text is prefixed as it was in training: with a chat
    template as transformers does it, else as SentencePiece does, also where it starts with a space.
    """
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
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    outside = {CONTROL, UNKNOWN, USER_DEFINED, BYTE}
    by_score = sorted((piece for piece in model.pieces if piece.type not in outside), key=lambda piece: -piece.score)
    merges = []
    for piece in (each.piece for each in by_score):
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    added = {i: piece for i, piece in enumerate(model.pieces) if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    bos = tokenizer.piece(tokenizer.bos_id)
    begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": piece.piece, **flags, "normalized": own, "special": not own}
            for i, piece in added.items()
            for own in [piece.type == USER_DEFINED]  # found in a text whose spaces are ▁
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": _pre_tokenizer(tokenizer, normalizer.add_dummy_prefix),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[trainer.unk_id].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": trainer.byte_fallback,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _pre_tokenizer(tokenizer: SentencePieceTokenizer, prefixes: bool) -> dict[str, Any]:
    """Say where ▁ is put before a text, whose spaces are ▁ already; `prefixes`: whether the model does so at all."""

    def metaspace(replacement: str, scheme: str) -> dict[str, Any]:
        return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": False}

    spaces = metaspace("▁", tokenizer.prepend_scheme if prefixes else "never")  # unless the text starts with ▁
    if not prefixes or isinstance(tokenizer.prompt_template, ChatTemplate):
        return spaces
    return {"type": "Sequence", "pretokenizers": [metaspace(" ", "first"), spaces]}  # the first one sees no space
