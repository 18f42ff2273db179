"""Tokenizers: messages → token ids, and which of them have a loss; what the formats have in common."""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

from torchtune_lite.config import DottedPath
from torchtune_lite.data.chat_template import CHAT_TEMPLATE, ChatTemplate, Span, get_chat_template
from torchtune_lite.data.cuts import first_tokens
from torchtune_lite.data.messages import Message
from torchtune_lite.data.templates import Template, get_prompt_template
from torchtune_lite.data.tokenizer_files import ids, read_json
from torchtune_lite.errors import ConfigError, DataError

T = TypeVar("T")
PromptTemplateArg = Literal["chat_template"] | DottedPath | Mapping[str, Sequence[str]] | Template | ChatTemplate | None

log = logging.getLogger("torchtune_lite")


class ModelTokenizer(ABC):
    """Turns messages into tokens, with BOS before each exchange and EOS after each answer, or by a chat template.

    `max_seq_len` cuts a sample's tokens, EOS staying last; None does not, but a training recipe then sets the model's
    limit. `prompt_template`: "chat_template" for the one beside the tokenizer, a dotted path, a mapping role → [prefix,
    suffix], a template object, or None for the bare messages.

    A format sets `vocab_size`, `bos_id` and `eos_id` (None: it has none), `pad_id`, `stop_tokens` and `added`, the ids
    of the tokens that stand outside its ordinary text.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    stop_tokens: list[int]
    added: set[int]
    most_around = 2  # tokens that stand around a message: BOS and EOS
    cuts: re.Pattern | None = None
    """Where a text can be cut so that its start keeps its tokens; None: not known, a long text is encoded whole."""

    def __init__(self, path: str | Path, max_seq_len: int | None) -> None:
        if max_seq_len is not None and max_seq_len < 2:
            raise ConfigError(f"tokenizer.max_seq_len={max_seq_len} must be at least 2: a token and its label")
        self.path, self.max_seq_len = str(path), max_seq_len
        self.prompt_template: Template | ChatTemplate | None = None

    @abstractmethod
    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """Encodes text; `trim_leading_whitespace` leaves out the space that some formats put before a text."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Gives the text of token ids, without special tokens and ids beyond the vocabulary."""

    @abstractmethod
    def encode_chat(self, text: str) -> tuple[list[int], list[Span]]:
        """Encodes a text in which special tokens are spelled out; gives each token's start and end in it, too."""

    def encode_first(self, text: str, most: float, **options: bool) -> list[int]:
        """Encodes as `encode` does, but of a long text only as much as gives more than `most` tokens."""
        return self._first(lambda start: self.encode(start, **options), text, most)

    def most_tokens(self, text: str) -> float:
        """Bounds the tokens of a text without encoding it; infinity where the format has no bound."""
        return math.inf

    def tokenize_messages(self, messages: list[Message], *, add_eos: bool = True) -> tuple[list[int], list[bool]]:
        """Gives the tokens of a conversation and, for each, whether it is left out of the loss.

        Without a chat template each part of a message is encoded by itself, without the spaces at its end, as torchtune
        does. `add_eos=False` for a prompt that the model continues. With `max_seq_len` and `add_eos` the last token of
        a conversation that is cut is EOS, masked as the token in whose place it stands.
        """
        tokens, mask, _ = self._tokenize(messages, add_eos)
        return tokens, mask

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """Replaces a sample's `messages` by `tokens`, `mask` and `truncated`; `inference` leaves the last turn open."""
        tokens, mask, truncated = self._tokenize(sample["messages"], add_eos=not inference)
        rest = {key: value for key, value in sample.items() if key != "messages"}
        return {**rest, "tokens": tokens, "mask": mask, "truncated": truncated}

    def surely_whole(self, sample: Mapping[str, Any]) -> bool:
        """Tells without encoding it that a sample will not be cut and has a label; False where only encoding tells."""
        if isinstance(self.prompt_template, ChatTemplate):
            return False
        messages = sample["messages"]
        if self.prompt_template is not None:
            if not self._surely_fits(messages):  # and then not with a template around it, which is spared
                return False
            messages = self.prompt_template(messages)
        has_label = any(message.role == "assistant" and not message.masked for message in messages)
        return has_label and self._surely_fits(messages)

    def _surely_fits(self, messages: list[Message]) -> bool:
        texts = [part["content"] for message in messages for part in message.content]
        most = self.most_around * len(messages) + sum(map(self.most_tokens, texts))
        return self.max_seq_len is None or most <= self.max_seq_len

    def _use_template(self, given: PromptTemplateArg, config: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        """Sets `prompt_template`, last of all; a chat template's end of turn becomes a stop token.

        `config` is that of the tokenizer, `variables` the special tokens that a chat template may name.
        """
        if given == CHAT_TEMPLATE:
            given = get_chat_template(Path(self.path).expanduser().parent, config, variables)
        self.prompt_template = given if isinstance(given, ChatTemplate) else get_prompt_template(given)
        if isinstance(given, ChatTemplate):
            self._stop_at_turns_end(given)

    def _stop_at_turns_end(self, template: ChatTemplate) -> None:
        probe = [Message("user", "a", masked=True), Message("assistant", "b")]
        try:
            tokens, mask = self._by_chat_template(template, probe)
        except DataError:  # it wants another form of conversation: the first row will tell
            return
        ends = [token for token, masked in zip(tokens, mask, strict=True) if not masked and token in self.added]
        if not ends:
            log.warning(
                "%s ends an answer with no special token, so a model trained with it will not learn to stop; add "
                "{{ eos_token }} after the answer",
                template.name,
            )
        self.stop_tokens += [token for token in ends[-1:] if token not in self.stop_tokens]

    def _tokenize(self, messages: list[Message], add_eos: bool) -> tuple[list[int], list[bool], bool]:
        template, more = self.prompt_template, False
        if not isinstance(template, ChatTemplate):
            tokens, mask, more = self._by_parts(template(messages) if template else messages, add_eos)
        elif add_eos:
            tokens, mask = self._by_chat_template(template, messages)
        else:
            tokens, _ = self._encode_chat_first(template.prompt(messages))
            mask = [True] * len(tokens)
        limit = self.max_seq_len
        truncated = more or (limit is not None and len(tokens) > limit)
        if truncated:
            del tokens[limit:], mask[limit:]
            if add_eos:
                tokens[-1] = self.eos_id
        return tokens, mask, truncated

    def _by_chat_template(self, template: ChatTemplate, messages: list[Message]) -> tuple[list[int], list[bool]]:
        return self._encode_spans(*template.loss_spans(messages))

    def _encode_spans(self, text: str, spans: Iterable[Span]) -> tuple[list[int], list[bool]]:
        """Encodes a whole text at once, as far as it will not be cut off; a token has a loss if any of its text does.

        Of the `spans`, which come in order, those are asked for that stand in the tokens which are kept.
        """
        tokens, places = self._encode_chat_first(text)
        kept = places[: self.max_seq_len]
        length = max((max(end, start + 1) for start, end in kept), default=0)
        has_loss = bytearray(length)
        for start, end in takewhile(lambda span: span[0] < length, spans):
            has_loss[start:end] = b"\1" * (min(end, length) - start)
        mask = [not any(has_loss[start : max(end, start + 1)]) for start, end in kept]
        return tokens, mask + [True] * (len(tokens) - len(kept))

    def _encode_chat_first(self, text: str) -> tuple[list[int], list[Span]]:
        return self._first(self.encode_chat, text, self.max_seq_len or math.inf, lambda encoded: len(encoded[0]))

    def _first(self, encode: Callable[[str], T], text: str, most: float, count: Callable[[T], int] = len) -> T:
        return first_tokens(encode, text, most, lambda: self.cuts, count)

    def _encode_part(self, text: str, trim: bool) -> list[int]:
        return self.encode(text, add_bos=False, add_eos=False, trim_leading_whitespace=trim)

    def _by_parts(self, messages: list[Message], add_eos: bool) -> tuple[list[int], list[bool], bool]:
        """Encodes part after part, until there is enough; tells whether messages are left."""
        limit = self.max_seq_len or math.inf
        tokens: list[int] = []
        mask: list[bool] = []
        starts, after_space = True, False
        for message in messages:
            ids = [self.bos_id] if starts and self.bos_id is not None else []
            trim = not starts and not after_space
            text = ""
            for part in message.content:
                text = part["content"]
                room = max(limit - len(tokens) - len(ids), 0)
                ids += self._first(partial(self._encode_part, trim=trim), text.rstrip(" "), room)
            after_space = text.endswith(" ")
            starts = message.role == "assistant"
            if starts and (add_eos or message is not messages[-1]):
                ids.append(self.eos_id)
            tokens += ids
            mask += [message.masked] * len(ids)
            if len(tokens) >= limit:
                break
        return tokens, mask, message is not messages[-1]


def check_vocabulary(tokenizer: Any, vocab_size: int, checkpoint_dir: Path | str | None = None) -> None:
    """Raises DataError where the tokenizer can give an id that the model has no embedding for.

    With `checkpoint_dir` a warning tells of a BOS or EOS that is not the one of its config.json.
    """
    name = getattr(tokenizer, "path", "")
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {name} has {tokenizer.vocab_size:,} tokens but the model embeds "
            f"{vocab_size:,}; use the tokenizer that came with the checkpoint"
        )
    pad_id, eos_id = getattr(tokenizer, "pad_id", 0), getattr(tokenizer, "eos_id", None)
    if not 0 <= pad_id < vocab_size:
        raise DataError(
            f"tokenizer {name} pads with id {pad_id}, which the model does not embed; set another pad_token"
        )
    if pad_id == eos_id:
        log.info("tokenizer %s has no padding token of its own: EOS pads; an EOS in the data keeps its label", name)
    if checkpoint_dir is None:
        return
    configs = [read_json(Path(checkpoint_dir) / file) for file in ("config.json", "generation_config.json")]
    for special in ("bos", "eos"):
        ours = getattr(tokenizer, f"{special}_id", None)
        theirs = sorted({each for config in configs for each in ids(config.get(f"{special}_token_id"))})
        if ours is not None and theirs and ours not in theirs:
            log.warning(
                "tokenizer %s has %s %d, but the checkpoint's config.json has %s; is it another model's?",
                *(name, special.upper(), ours, " or ".join(map(str, theirs))),
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
