"""Tokenizers: messages → token ids, and which of them have a loss; what the formats have in common."""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from torchtune_lite.config import DottedPath
from torchtune_lite.data.messages import Masking, Message
from torchtune_lite.data.templates import Template, endings, find_glued, get_prompt_template, opened, written
from torchtune_lite.data.tokenizers.chat_template import (
    CHAT_TEMPLATE,
    RESERVED,
    STRFTIME,
    ChatTemplate,
    Span,
    get_chat_template,
    parsed_date,
)
from torchtune_lite.data.tokenizers.cuts import first_tokens
from torchtune_lite.errors import ConfigError, DataError

T = TypeVar("T")

PromptTemplateName = Literal["chat_template"] | DottedPath | Mapping[str, Sequence[str]] | None
"""What a YAML says for a prompt template: the one of the checkpoint, a dotted path, a mapping, null for none."""

TrainOn = Literal["all", "last"]
"""Which answers of a conversation have a loss: each that the data set does not mask, or the last one alone."""

PromptTemplateArg = PromptTemplateName | Template | ChatTemplate

LOOKED_AT = 20
"""How many conversations are looked at for questions and answers that stand side by side."""

log = logging.getLogger("torchtune_lite")


class ModelTokenizer(ABC):
    """Turns messages into tokens, with BOS before each exchange and EOS after each answer, or by a chat template.

    `max_seq_len` cuts a sample's tokens; None does not, but a training recipe then sets the model's limit. With
    `add_eos_when_cut` EOS then stands in the place of the last token, as in torchtune, which teaches to stop anywhere.
    `prompt_template`: "chat_template" for the one beside the tokenizer, a dotted path, a mapping role → [prefix,
    suffix], a template object, or None for the bare messages. `chat_template_kwargs` are variables of the chat
    template, such as `enable_thinking`; `strftime_now` is the date that it writes as today's. `train_on`: "last" leaves
    the loss on the last answer of each conversation alone. With "all", a conversation whose earlier answers the chat
    template writes otherwise once more turns follow, as Qwen 3's without their thoughts, becomes a sample for each
    answer, which ends with it and reads as what the model is asked with.

    A format sets `vocab_size`, `bos_id` and `eos_id` (None: it has none), `pad_id`, `stop_tokens` and `added`, the ids
    of the tokens that stand outside its ordinary text.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    stop_tokens: list[int]
    added: set[int]
    adds_bos = True  # before a text, where transformers encodes it
    turn_end: int | None = None  # the token that ends an answer in the chat template
    most_around = 2  # tokens that stand around a message: BOS and EOS
    marks_roles = False  # without a template, too
    cuts: re.Pattern | None = None  # where a text can be cut so that its start keeps its tokens; None: not known

    def __init__(
        self, path: str | Path, max_seq_len: int | None, add_eos_when_cut: bool = False, train_on: TrainOn = "all"
    ) -> None:
        if train_on not in get_args(TrainOn):
            raise ConfigError(f"tokenizer.train_on={train_on!r} is not one of {', '.join(get_args(TrainOn))}")
        if max_seq_len is not None and max_seq_len < 2:
            raise ConfigError(f"tokenizer.max_seq_len={max_seq_len} must be at least 2: a token and its label")
        self.path, self.max_seq_len, self.add_eos_when_cut = str(path), max_seq_len, add_eos_when_cut
        self.train_on: TrainOn = train_on
        self.prompt_template: Template | ChatTemplate | None = None
        self._to_look_at = 0 if self.marks_roles else LOOKED_AT

    @abstractmethod
    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """Encode text; `trim_leading_whitespace` leaves out the space that some formats put before a text."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens and ids beyond the vocabulary."""

    @abstractmethod
    def encode_chat(self, text: str) -> tuple[list[int], list[Span]]:
        """Encode a text in which special tokens are spelled out; return each token's start and end in it, too."""

    def encode_first(self, text: str, most: float, **options: bool) -> list[int]:
        """Encode as `encode` does, but of a long text only as much as gives more than `most` tokens."""
        return self._first(lambda start: self.encode(start, **options), text, most)

    def most_tokens(self, text: str) -> float:
        """Bound the tokens of a text without encoding it; infinity where the format has no bound."""
        return math.inf

    def tokenize_messages(self, messages: list[Message], *, add_eos: bool = True) -> tuple[list[int], list[bool]]:
        """Return the tokens of a conversation and, for each, whether it is left out of the loss.

        Without a chat template each part of a message is encoded by itself, without the spaces at its end, as torchtune
        does. `add_eos=False` for a prompt that the model continues.
        """
        tokens, mask, _ = self._tokenize(messages, add_eos)
        return tokens, mask

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """Replace a sample's `messages` by `tokens`, `mask` and `truncated`; `inference` leaves the last turn open.

        A chat template is given the sample's `chat_template_kwargs`, among them its `tools`.
        """
        self._look_at(sample["messages"])
        if self.train_on == "last" and not inference:
            [sample] = self.expanded(sample)
        options = sample.get("chat_template_kwargs", {})
        tokens, mask, truncated = self._tokenize(sample["messages"], not inference, options)
        rest = {key: value for key, value in sample.items() if key != "messages"}
        return {**rest, "tokens": tokens, "mask": mask, "truncated": truncated}

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What a text template writes after each answer, which no special token ends; () for nothing."""
        return () if isinstance(self.prompt_template, ChatTemplate) else endings(self.prompt_template)

    @property
    def may_expand(self) -> bool:
        """Return whether `expanded` may give several samples for one."""
        template = self.prompt_template
        return self.train_on == "all" and isinstance(template, ChatTemplate) and template.may_rewrite

    def expanded(self, sample: Mapping[str, Any], number: int | None = None) -> list[Mapping[str, Any]]:
        """Return the samples with `messages` that are made of one, each to be tokenised: one, or one for each answer.

        With `number` only that one of them. Each has a loss on the turns after the answer before it. What it takes to
        make and tokenise them is linear in the text that they have together.
        """
        messages = sample["messages"]
        answers = [i for i, message in enumerate(messages) if message.role == "assistant" and not message.masked]
        if self.train_on == "last":
            turns = messages[: answers[-1] + 1] if answers else messages
            return [{**sample, "messages": Masking(False, "train_on_last")([replace(turn) for turn in turns])}]
        given = sample.get("chat_template_kwargs", {})
        if not self.may_expand or not self.prompt_template.rewrites(messages, **given):
            return [sample]
        spans = list(pairwise([-1, *answers]))
        samples = []
        for done, end in spans if number is None else [spans[number]]:
            turns = [replace(turn, masked=turn.masked or i <= done) for i, turn in enumerate(messages[: end + 1])]
            samples.append({**sample, "messages": turns})
        return samples

    def surely_whole(self, sample: Mapping[str, Any]) -> bool:
        """Tell without encoding it that a sample will not be cut and has a label; False where only encoding tells."""
        if isinstance(self.prompt_template, ChatTemplate):
            return False
        messages = sample["messages"]
        self._look_at(messages)
        if self.prompt_template is not None and not self._surely_fits(messages):
            return False  # and then not with a template around it, which is spared
        messages = written(messages, self.prompt_template)
        has_label = any(message.role == "assistant" and not message.masked for message in messages)
        return has_label and self._surely_fits(messages)

    def _surely_fits(self, messages: list[Message]) -> bool:
        texts = [part["content"] for message in messages for part in message.content]
        most = self.most_around * len(messages) + sum(map(self.most_tokens, texts))
        return self.max_seq_len is None or most <= self.max_seq_len

    def reads(self, field: str) -> bool:
        """Return whether a chat template reads a field of a message or a variable; a text template reads none."""
        return isinstance(self.prompt_template, ChatTemplate) and self.prompt_template.reads(field)

    def _use_template(
        self,
        given: PromptTemplateArg,
        config: Mapping[str, Any],
        variables: Mapping[str, str],
        options: Mapping[str, Any] | None,
    ) -> None:
        """Set `prompt_template`, last of all; a chat template's end of turn becomes a stop token.

        `config` is that of the tokenizer, `variables` the special tokens that a chat template may name, `options` the
        `chat_template_kwargs`.
        """
        if given == CHAT_TEMPLATE:
            given = get_chat_template(Path(self.path).expanduser().parent, config, variables)
        self.prompt_template = given if isinstance(given, ChatTemplate) else get_prompt_template(given)
        if refused := [name for name in options or () if name in RESERVED or not self.reads(name)]:
            name = getattr(given, "name", "a text template")
            raise ConfigError(f"tokenizer.chat_template_kwargs: {name} takes no {', '.join(refused)}; leave it out")
        if isinstance(given, ChatTemplate):
            options = dict(options or {})
            given.set_options(options, parsed_date(options.pop(STRFTIME, None)))
            self._stop_at_turns_end(given)

    def _stop_at_turns_end(self, template: ChatTemplate) -> None:
        probe = [Message("user", "a", masked=True), Message("assistant", "b")]
        try:
            tokens, mask = self._encode_spans(*template.loss_spans(probe), limit=None)
        except DataError:  # it wants another form of conversation: the first row will tell
            return
        ends = [token for token, masked in zip(tokens, mask, strict=True) if not masked and token in self.added]
        if not ends:
            log.warning(
                "%s ends an answer with no special token, so a model trained with it will not learn to stop; add "
                "{{ eos_token }} after the answer",
                template.name,
            )
        self.turn_end = ends[-1] if ends else None
        self.stop_tokens += [token for token in ends[-1:] if token not in self.stop_tokens]

    def _tokenize(
        self, messages: list[Message], add_eos: bool, given: Mapping[str, Any] | None = None
    ) -> tuple[list[int], list[bool], bool]:
        template, more = self.prompt_template, False
        if not isinstance(template, ChatTemplate):
            tokens, mask, more = self._by_parts((written if add_eos else opened)(messages, template), add_eos)
        elif add_eos:
            tokens, mask = self._encode_spans(*template.loss_spans(messages, **given or {}), self.max_seq_len)
        else:
            tokens, _ = self._encode_chat_first(template.prompt(messages, **given or {}), self.max_seq_len)
            mask = [True] * len(tokens)
        limit = self.max_seq_len
        truncated = more or (limit is not None and len(tokens) > limit)
        if truncated:
            del tokens[limit:], mask[limit:]
            if add_eos and self.add_eos_when_cut:
                tokens[-1] = self.eos_id
        return tokens, mask, truncated

    def _look_at(self, messages: list[Message]) -> None:
        """Warn once where a text template lets a question and its answer stand side by side."""
        if not self._to_look_at or isinstance(self.prompt_template, ChatTemplate):
            return
        self._to_look_at -= 1
        if glued := find_glued(messages, written(messages, self.prompt_template)):
            self._to_look_at = 0
            log.warning(
                "nothing stands between a question and its answer, as in %r; set tokenizer.prompt_template, e.g. "
                "{user: ['', '\\n']}, unless this is intended",
                glued,
            )

    def _encode_spans(self, text: str, spans: Iterable[Span], limit: int | None) -> tuple[list[int], list[bool]]:
        """Encode a whole text at once, if it has more than `limit` tokens only so far; marks those without a loss.

        A token has a loss if any of its text does. Of the `spans`, which come in order, those are asked for that stand
        in the first `limit` tokens.
        """
        tokens, places = self._encode_chat_first(text, limit)
        kept = places[:limit]
        length = max((max(end, start + 1) for start, end in kept), default=0)
        has_loss = bytearray(length)
        for start, end in takewhile(lambda span: span[0] < length, spans):
            has_loss[start:end] = b"\1" * (min(end, length) - start)
        mask = [not any(has_loss[start : max(end, start + 1)]) for start, end in kept]
        return tokens, mask + [True] * (len(tokens) - len(kept))

    def _encode_chat_first(self, text: str, limit: int | None) -> tuple[list[int], list[Span]]:
        return self._first(self.encode_chat, text, limit or math.inf, lambda encoded: len(encoded[0]))

    def _first(self, encode: Callable[[str], T], text: str, most: float, count: Callable[[T], int] = len) -> T:
        return first_tokens(encode, text, most, lambda: self.cuts, count)

    def _encode_part(self, text: str, trim: bool) -> list[int]:
        return self.encode(text, add_bos=False, add_eos=False, trim_leading_whitespace=trim)

    def _by_parts(self, messages: list[Message], add_eos: bool) -> tuple[list[int], list[bool], bool]:
        """Encode part after part, until there is enough; tell whether messages are left."""
        limit = self.max_seq_len or math.inf
        tokens, mask = list[int](), list[bool]()
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
