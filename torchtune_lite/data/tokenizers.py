"""Tokenizers: text or messages → token ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from torchtune_lite.config import DottedPath
from torchtune_lite.data.messages import Message
from torchtune_lite.data.templates import Template, get_prompt_template
from torchtune_lite.errors import ConfigError, DataError


class SentencePieceTokenizer:
    """A SentencePiece model (`tokenizer.model`) with BOS before each exchange and EOS after each answer.

    `max_seq_len` cuts a sample's tokens, EOS staying last; None does not, but a training recipe then sets the model's
    limit. `prompt_template`: a dotted path, a mapping role → [prefix, suffix], a template object, or None for the bare
    messages. `pad_id` is 0 where the model has no padding piece. Raises DataError for a file that is missing or no
    SentencePiece model, or one without BOS and EOS.
    """

    def __init__(
        self,
        path: str,
        max_seq_len: int | None = None,
        prompt_template: DottedPath | Mapping[str, Sequence[str]] | Template | None = None,
    ) -> None:
        if max_seq_len is not None and max_seq_len < 2:
            raise ConfigError(f"tokenizer.max_seq_len={max_seq_len} must be at least 2: a token and its label")
        self.path, self.max_seq_len = str(path), max_seq_len
        self.prompt_template = get_prompt_template(prompt_template)
        self._model = _load(Path(path).expanduser())
        self.vocab_size = self._model.vocab_size()
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise DataError(f"tokenizer {path} has no BOS or no EOS piece; train it with bos_id and eos_id")
        self.pad_id = max(self._model.pad_id(), 0)
        self.stop_tokens = [self.eos_id]
        self._keeps_whitespace = any(self._model.encode(character) for character in " \n\t\r\v")
        self._newline = len(self._model.encode("\n"))
        self._expansion = (
            1 if len(self._model.encode("\ufdfa")) <= 4 else 11
        )  # NFKC writes this character out: 3 bytes, 33

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """Encodes text; `trim_leading_whitespace` leaves out the space that SentencePiece puts before a text."""
        if trim_leading_whitespace and self._keeps_whitespace:
            ids = self._model.encode("\n" + text)[self._newline :]
        else:
            ids = self._model.encode(text)
        return [self.bos_id] * add_bos + ids + [self.eos_id] * add_eos

    def decode(self, token_ids: Sequence[int]) -> str:
        """Gives the text of token ids, without BOS, EOS and ids beyond the vocabulary, which a padded embedding has."""
        return self._model.decode([token for token in token_ids if token < self.vocab_size])

    def tokenize_messages(self, messages: list[Message], *, add_eos: bool = True) -> tuple[list[int], list[bool]]:
        """Gives the tokens of a conversation and, for each, whether it is left out of the loss.

        Each part of a message is encoded by itself, without the spaces at its end, as torchtune does. `add_eos=False`
        for a prompt that the model continues. With `max_seq_len` and `add_eos` the last token is always EOS, masked as
        the last message kept.
        """
        tokens, mask, _ = self._tokenize(messages, add_eos)
        return tokens, mask

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """Replaces a sample's `messages` by `tokens`, `mask` and `truncated`; `inference` leaves the last turn open."""
        tokens, mask, truncated = self._tokenize(sample["messages"], add_eos=not inference)
        rest = {key: value for key, value in sample.items() if key != "messages"}
        return {**rest, "tokens": tokens, "mask": mask, "truncated": truncated}

    def most_tokens(self, text: str) -> int:
        """Bounds the tokens of a text without encoding it: one a byte, and one for the space put before it."""
        return 1 + self._expansion * len(text.encode())

    def surely_whole(self, sample: Mapping[str, Any]) -> bool:
        """Tells without encoding it that a sample will not be cut and has a label; False where only encoding tells."""
        messages = sample["messages"]
        if self.prompt_template is not None:
            messages = self.prompt_template(messages)
        if not any(message.role == "assistant" and not message.masked for message in messages):
            return False
        texts = [part["content"] for message in messages for part in message.content]
        most = 2 * len(messages) + sum(map(self.most_tokens, texts))  # BOS and EOS
        return self.max_seq_len is None or most <= self.max_seq_len

    def _tokenize(self, messages: list[Message], add_eos: bool) -> tuple[list[int], list[bool], bool]:
        if self.prompt_template is not None:
            messages = self.prompt_template(messages)
        limit = self.max_seq_len or float("inf")
        tokens: list[int] = []
        mask: list[bool] = []
        starts, after_space = True, False
        for message in messages:
            ids = [self.bos_id] if starts else []
            trim = not starts and not after_space
            text = ""
            for part in message.content:
                text = part["content"]
                ids += self.encode(text.rstrip(" "), add_bos=False, add_eos=False, trim_leading_whitespace=trim)
            after_space = text.endswith(" ")
            starts = message.role == "assistant"
            if starts and add_eos:
                ids.append(self.eos_id)
            tokens += ids
            mask += [message.masked] * len(ids)
            if len(tokens) >= limit:
                break
        truncated = len(tokens) > limit or message is not messages[-1]
        if self.max_seq_len is not None:
            del tokens[self.max_seq_len :], mask[self.max_seq_len :]
            if add_eos:
                tokens[-1] = self.eos_id
        return tokens, mask, truncated


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raises DataError where the tokenizer can give an id that the model has no embedding for."""
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {getattr(tokenizer, 'path', '')} has {tokenizer.vocab_size:,} tokens but the model embeds "
            f"{vocab_size:,}; use the tokenizer that came with the checkpoint"
        )


def limit_length(tokenizer: Any, max_seq_len: int) -> None:
    """Makes the tokenizer cut samples to the positions a model has, where it is not told to cut them shorter.

    Raises ConfigError where it is told to leave them longer.
    """
    if tokenizer.max_seq_len is None:
        tokenizer.max_seq_len = max_seq_len
    elif tokenizer.max_seq_len > max_seq_len:
        raise ConfigError(
            f"tokenizer.max_seq_len={tokenizer.max_seq_len} is more than the model's {max_seq_len} positions; "
            f"set it to {max_seq_len} or less"
        )


def _load(path: Path) -> SentencePieceProcessor:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"tokenizer.path {path}: {error.strerror or error}") from None
    model = SentencePieceProcessor()
    try:
        if not data:
            raise RuntimeError("empty")
        model.LoadFromSerializedProto(data)
    except RuntimeError:
        raise DataError(f"tokenizer.path {path} {_what_it_is(data)}") from None
    return model


def _what_it_is(data: bytes) -> str:
    head = data[:200].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return f"is a git-lfs pointer ({len(data)} bytes), not the file; run 'git lfs pull'"
    if head.startswith(b"<"):
        return "is an HTML page, not the file; the download was refused, log in and fetch it again"
    if head.startswith(b"{"):
        return "is a JSON file; give the SentencePiece file, 'tokenizer.model'"
    return f"is not a SentencePiece model ({len(data):,} bytes); fetch the file again"
