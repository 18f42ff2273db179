"""SentencePiece models: Llama 2's `tokenizer.model` and its like."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from torchtune_lite.data.tokenizers.chat_template import Span
from torchtune_lite.data.tokenizers.cuts import ANY, ASCII, before_spaces
from torchtune_lite.data.tokenizers.files import (
    added_tokens,
    guard,
    not_readable,
    prepend_scheme,
    read_json,
    read_tokenizer_file,
    special_tokens,
)
from torchtune_lite.data.tokenizers.model_tokenizer import ModelTokenizer, PromptTemplateArg, TrainOn
from torchtune_lite.errors import DataError

BYTE = re.compile("<0x[0-9A-F]{2}>")
NORMALIZERS = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""Those of SentencePiece itself."""


class SentencePieceTokenizer(ModelTokenizer):
    """A SentencePiece model (`tokenizer.model`).

    `pad_id` is 0 where the model has no padding piece. Raises DataError for a file that is missing or no SentencePiece
    model, or one without BOS and EOS. A chat template is encoded as transformers' LlamaTokenizer does.
    """

    def __init__(
        self,
        path: str | Path,
        max_seq_len: int | None = None,
        prompt_template: PromptTemplateArg = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_eos_when_cut: bool = False,
        train_on: TrainOn = "all",
    ) -> None:
        super().__init__(path, max_seq_len, add_eos_when_cut, train_on)
        file = Path(path).expanduser()
        self._model = _load(file)
        self.vocab_size = self._model.vocab_size()
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise DataError(f"tokenizer {path} has no BOS or no EOS piece; train it with bos_id and eos_id")
        self.pad_id = max(self._model.pad_id(), 0)
        self.stop_tokens = [self.eos_id]
        self._keeps_whitespace = any(self._model.encode(character) for character in " \n\t\r\v")
        self._guard = guard(map(self.piece, range(self.vocab_size)))
        self._guard_length = len(self._model.encode(self._guard))
        self._expansion = (
            1 if len(self._model.encode("\ufdfa")) <= 4 else 11
        )  # NFKC writes this character out: 3 bytes, 33
        self._read_config(file.parent, prompt_template, chat_template_kwargs)

    def _read_config(
        self, folder: Path, prompt_template: PromptTemplateArg, chat_template_kwargs: Mapping[str, Any] | None
    ) -> None:
        """Read what stands beside the model and matters to chat templates alone."""
        config = read_json(folder / "tokenizer_config.json")
        outside = [i for i in range(self.vocab_size) if self._model.is_control(i) or self._model.is_unknown(i)]
        named = {self._model.id_to_piece(i): i for i in outside}
        named |= added_tokens(folder, config)
        self._special = named
        self.added = set(named.values())
        self._split = re.compile(f"({'|'.join(map(re.escape, sorted(named, key=len, reverse=True)))})")
        self.prepend_scheme = prepend_scheme(config)
        self.adds_bos = config.get("add_bos_token", True)
        ends = {"bos_token": self._model.id_to_piece(self.bos_id), "eos_token": self._model.id_to_piece(self.eos_id)}
        self.template_variables = ends | special_tokens(folder, config)
        self._use_template(prompt_template, config, self.template_variables, chat_template_kwargs)

    def serialized(self) -> bytes:
        """Return the model as its file holds it."""
        return self._model.serialized_model_proto()

    def piece(self, token_id: int) -> str:
        """Return the text by which a chat template spells a token."""
        return self._model.id_to_piece(token_id)

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """Encode text; `trim_leading_whitespace` leaves out the space that SentencePiece puts before a text."""
        if trim_leading_whitespace and self._keeps_whitespace:
            ids = self._model.encode(self._guard + text)[self._guard_length :]
        else:
            ids = self._model.encode(text)
        return [self.bos_id] * add_bos + ids + [self.eos_id] * add_eos

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without BOS, EOS and ids beyond the vocabulary, as of a padded embedding."""
        return self._model.decode([token for token in token_ids if token < self.vocab_size])

    @cached_property
    def cuts(self) -> re.Pattern | None:
        """Find where a text can be cut: before a space, with which a piece of most models starts and none goes on."""
        try:
            from sentencepiece import sentencepiece_model_pb2
        except ImportError:  # protobuf is missing, or too old
            return None
        model = sentencepiece_model_pb2.ModelProto.FromString(self.serialized())
        changes = model.normalizer_spec.precompiled_charsmap
        if model.trainer_spec.treat_whitespace_as_suffix or (changes and model.normalizer_spec.name not in NORMALIZERS):
            return None
        return before_spaces([*(piece.piece for piece in model.pieces), *self._special], ASCII if changes else ANY)

    def most_tokens(self, text: str) -> int:
        """Bound the tokens of a text without encoding it: one a byte, and one for the space put before it."""
        return 1 + self._expansion * len(text.encode())

    def encode_chat(self, text: str) -> tuple[list[int], list[Span]]:
        """Encode a text in which special tokens are spelled out; return each token's start and end in it, too."""
        tokens: list[int] = []
        places: list[Span] = []
        at = 0
        for piece in filter(None, self._split.split(text)):
            if piece in self._special:
                tokens.append(self._special[piece])
                places.append((at, at + len(piece)))
            else:
                prefixed = self.prepend_scheme == "always" or (self.prepend_scheme == "first" and at == 0)
                prefixed &= not piece.startswith(" ")
                tokens += self.encode(piece, add_bos=False, add_eos=False, trim_leading_whitespace=not prefixed)
                places += self._places(piece, at, prefixed)
            at += len(piece)
        return tokens, places

    def _places(self, text: str, at: int, prefixed: bool) -> list[Span]:
        """Find where each token of a text, which starts `at`, stands: by the bytes of what it writes."""
        whole, left_out = (text, 0) if prefixed else (self._guard + text, self._guard_length)
        written = self._model.encode(whole, out_type=str)[left_out:]
        characters = [i for i, character in enumerate(text) for _ in character.encode()]  # of each byte
        ends = [-1 if prefixed else 0]  # of each token, in bytes, after the space put before the text
        for piece in written:
            ends.append(ends[-1] + (1 if BYTE.fullmatch(piece) else len(piece.replace("▁", " ").encode())))
        if ends[-1] != len(characters):
            raise DataError(
                f"tokenizer {self.path} changes spaces or characters, so the places of its tokens are not known; "
                "a chat template needs another tokenizer, or its tokenizer.json"
            )
        return [(at + characters[max(start, 0)], at + characters[max(end, 1) - 1] + 1) for start, end in pairwise(ends)]


def _load(path: Path) -> SentencePieceProcessor:
    data = read_tokenizer_file(path, "sentencepiece")
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
    except RuntimeError:
        raise not_readable(path, data, "sentencepiece") from None
    return model
