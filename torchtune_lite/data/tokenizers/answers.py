"""The places of a conversation's answers in the text of a chat template, and whether later turns change them.

A template may write an answer otherwise once more turns follow: Qwen 3's drops its thoughts. What is trained on then is
not what the model was asked for, so that each such answer needs a text that ends with it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from os.path import commonprefix
from typing import Any

from torchtune_lite.data.messages import Message
from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted

Span = tuple[int, int]

OTHER = "\ue000"  # private use: in no template or conversation


class Answers:
    """The answers in the `text` that `template`, a `ChatTemplate`, writes of `messages`; `given` are its variables."""

    def __init__(self, template: Any, messages: Sequence[Message], given: Mapping[str, Any]) -> None:
        self.template, self.messages, self.given = template, messages, given
        self.text = self._written(messages)

    def spans(self) -> Iterable[Span]:
        """Yield the parts of the text that have a loss, in order, as `ChatTemplate.loss_spans` says."""
        unmasked = [not message.masked for message in self.messages]
        is_answer = [message.role == "assistant" for message in self.messages]
        others = any(u and not a for u, a in zip(unmasked, is_answer, strict=True))
        if self.template.marks_answers and not others:
            return self._marked([u for u, a in zip(unmasked, is_answer, strict=True) if a])
        return (self._turns(first, last) for first, last in _runs(unmasked))

    def change(self) -> bool:
        """Return whether an answer with a loss reads otherwise here than it does, or is asked for, as the last turn.

        Costs renderings of the turns up to the first such answer, or of those up to each.
        """
        return not all(
            self._end(i) is not None and (i == 0 or self._length(self.messages[:i], True) is not None)
            for i, message in enumerate(self.messages[:-1])
            if message.role == "assistant" and not message.masked
        )

    def blocks(self) -> list[Span]:
        """Find the `{% generation %}` blocks."""
        private_use = map(chr, range(0xE000, 0xF8FF))  # no template's own
        start, end = islice((character for character in private_use if character not in self.text), 2)
        pieces = re.split(f"([{start}{end}])", self._written(self.messages, marks=(start, end)))
        spans: list[Span] = []
        at = 0
        for piece in pieces:
            if piece == start:
                spans.append((at, at))
            elif piece == end:
                spans[-1] = (spans[-1][0], at)
            else:
                at += len(piece)
        return spans

    def _written(self, messages: Sequence[Message], prompt: bool = False, marks: tuple[str, str] = ("", "")) -> str:
        return self.template.write(messages, self.given, prompt, marks)

    def _marked(self, wanted: Sequence[bool]) -> list[Span]:
        """Find what the blocks of the answers that are `wanted` hold after the prompt."""
        spans = self.blocks()
        if not all(wanted):
            if len(spans) != len(wanted):
                raise DataError(
                    f"{self.template.name} has {counted(len(spans), 'generation block')} for "
                    f"{counted(len(wanted), 'answer')}, so one of them cannot be left out of the loss alone"
                )
            spans = [span for span, is_wanted in zip(spans, wanted, strict=True) if is_wanted]
        return [(min(self._after_prompt(start), end), end) for start, end in spans]

    @cached_property
    def _opening(self) -> str:
        """The prompt of a next answer, where blocks hold that of their own."""
        if not self.template.marks_prompt:
            return ""
        asked = self._written(self.messages, prompt=True)
        return asked.removeprefix(self.text) if asked.startswith(self.text) else ""

    def _after_prompt(self, start: int) -> int:
        """Pass over what is not for the model to write: the prompt, and a block of thoughts that holds none."""
        for given in (self._opening, self.template.no_thoughts):
            start += len(given) if self.text.startswith(given, start) else 0
        return start

    def _turns(self, first: int, last: int) -> Span:
        """Find the text of the messages from `first` to `last`."""
        start = self._start(first)
        end = self._end(last) if last + 1 < len(self.messages) else len(self.text) - len(self.template.closing)
        if end is None:
            raise self._rewritten(last)
        return start, end

    def _start(self, index: int) -> int:
        if self.messages[index].role != "assistant":
            start = self._end(index - 1) if index else 0
            return self._start_of_content(index) if start is None else start
        if not index:
            return self._start_of_content(index)
        start = self._length(self.messages[:index], prompt=True)
        if start is None:
            raise self._unlike_prompt(index)
        return self._after_prompt(start)

    def _start_of_content(self, index: int) -> int:
        return len(commonprefix([self.text, self._with_other(self.messages, index)]))

    def _end(self, index: int) -> int | None:
        """Find where a message ends as it does when it is the last one; None where it reads otherwise.

        What closes the conversation alone, as a special token of Phi 3's, is not part of a message that something else
        closes.
        """
        turns = self.messages[: index + 1]
        written = self._written(turns)
        if self.text.startswith(written):
            return len(written)
        for closing in filter(None, (self.template.closing, *self.template.variables.values())):
            if written.endswith(closing) and self.text.startswith(shorter := written.removesuffix(closing)):
                close = self._with_other(turns, index).rpartition(OTHER)[2].removesuffix(closing)
                if close.strip():
                    return len(shorter)
        return None

    def _length(self, messages: Sequence[Message], prompt: bool) -> int | None:
        """Measure a part of a conversation; None where it reads otherwise than the text of the whole starts."""
        before = self._written(messages, prompt)
        return len(before) if self.text.startswith(before) else None

    def _rewritten(self, turn: int) -> DataError:
        return DataError(
            f"{self.template.name} writes messages[{turn}] differently once more turns follow, so its tokens in the "
            "loss are unknown; mark the answers in it with {% generation %}, or set tokenizer.train_on: last"
        )

    def _unlike_prompt(self, index: int) -> DataError:
        before, asked = (self._written(self.messages[:index], prompt) for prompt in (False, True))
        if not self.text.startswith(before) or not asked.startswith(before):
            return self._rewritten(index)
        return DataError(
            f"{self.template.name} asks for messages[{index}] with {asked.removeprefix(before)!r}, with which it does "
            "not begin; change chat_template_kwargs, or those of the row (enable_thinking, for an answer with thoughts)"
        )

    def _with_other(self, messages: Sequence[Message], index: int) -> str:
        """Write a conversation with another text in the place of one message."""
        turn = {name: value for name, value in self.template.turn(messages[index]).items() if name != "tool_calls"}
        other = Message(messages[index].role, OTHER, original=turn | {"content": OTHER})
        return self._written([*messages[:index], other, *messages[index + 1 :]])


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """List the first and last index of each run of true flags."""
    starts = [i for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1])]
    ends = [i for i, flag in enumerate(flags) if flag and (i + 1 == len(flags) or not flags[i + 1])]
    return list(zip(starts, ends, strict=True))
