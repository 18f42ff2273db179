"""A checkpoint's own chat template: Jinja, rendered as transformers renders it, and which of the text has a loss.

A template comes with a download, so it runs in Jinja's sandbox and sees plain values only.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from itertools import islice
from os.path import commonprefix
from pathlib import Path
from typing import Any

from torchtune_lite.data.messages import Message, is_text_parts
from torchtune_lite.data.tokenizers.files import leads_out
from torchtune_lite.data.tokenizers.template_compiler import MARKS, compile_template
from torchtune_lite.errors import DataError
from torchtune_lite.utils import counted

Span = tuple[int, int]

CHAT_TEMPLATE = "chat_template"
"""What a config's `prompt_template` says for the template that came with the tokenizer."""

FILE = "chat_template.jinja"
TOOL_USE = "tool_use"
"""The template that transformers takes for a conversation with tools, where a folder has several."""

STRFTIME = "strftime_now"
RESERVED = ("messages", "documents", "add_generation_prompt")
"""The variables of a template that no config and no row sets."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names of an assistant's thoughts; transformers passes what has one of them under the first two."""

MORE_TEMPLATES = "additional_chat_templates"
"""The folder beside `FILE` that has the others."""

OTHER = "\ue000"  # private use: in no template or conversation


class ChatTemplate:
    """A Jinja template `source` with `variables` such as `bos_token`; `name` is what errors call it.

    It sees each turn as the data have it (`Message.original`), but that text in parts is joined where it takes no
    parts. The methods' `given` are the variables of one conversation, among them `tools`, for which `tool_use` is
    another template. `options` are variables of all conversations, `today` is the date that it may write; None: that of
    the clock. Raises DataError where the source is not Jinja, ConfigError where jinja2 is missing.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        name: str = CHAT_TEMPLATE,
        tool_use: "ChatTemplate | None" = None,
    ) -> None:
        self.source, self.variables, self.name, self.tool_use = source, dict(variables), name, tool_use
        self.options: dict[str, Any] = {}
        self.today: date | None = None
        self._template = compile_template(source, name, self._strftime_now)
        self._marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_template": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._template = compile_template(self.source, self.name, self._strftime_now)

    def reads(self, field: str) -> bool:
        """Tells whether the template names a field of a turn, or a variable."""
        found = re.search(rf"\b{re.escape(field)}\b", self.source) is not None
        return found or (self.tool_use is not None and self.tool_use.reads(field))

    def set_options(self, options: Mapping[str, Any], today: date | None) -> None:
        """Sets the variables of all conversations and the date, also of the template for tools."""
        for template in filter(None, (self, self.tool_use)):
            template.options, template.today = dict(options), today

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, **given: Any) -> str:
        """Writes a conversation as text; with `add_generation_prompt` up to where an answer starts."""
        return self._render(messages, given, add_generation_prompt)

    def prompt(self, messages: Sequence[Message], **given: Any) -> str:
        """Writes a conversation whose last turn stays open: an answer that the model starts, or goes on with."""
        if messages[-1].role != "assistant":
            return self.render(messages, add_generation_prompt=True, **given)
        return self.render(messages[:-1], add_generation_prompt=True, **given) + messages[-1].text_content

    def loss_spans(self, messages: Sequence[Message], **given: Any) -> tuple[str, Iterable[Span]]:
        """Writes a conversation and tells the parts of the text, start and end, that have a loss, in their order.

        An answer is what the template puts in a `{% generation %}` block. In a template without them, or where other
        turns have a loss too, it is what follows the generation prompt, up to where the next turn starts; for that each
        turn must stay as it was when later ones are added, else DataError. An answer that opens the conversation starts
        with its content. These parts are looked for when they are asked for: each takes renderings of the turns before
        it, which those that will be cut off need not have.
        """
        template = self._chosen(given)
        text = template.render(messages, **given)
        unmasked = [not message.masked for message in messages]
        is_answer = [message.role == "assistant" for message in messages]
        if template._marks_answers and not any(u and not a for u, a in zip(unmasked, is_answer, strict=True)):
            wanted = [u for u, a in zip(unmasked, is_answer, strict=True) if a]
            return text, template._marked(messages, given, text, wanted)
        return text, (template._turns(messages, given, text, first, last) for first, last in _runs(unmasked))

    @cached_property
    def _takes_parts(self) -> bool:
        """Tells whether the template writes the texts of a list of parts, rather than the list itself or nothing."""
        turns = [{"role": role, "content": [{"type": "text", "text": OTHER}]} for role in ("user", "assistant")]
        try:
            text = self._fill({"messages": turns, "add_generation_prompt": False})
        except DataError:
            return False
        return text.count(OTHER) == len(turns) and "'type'" not in text

    def _chosen(self, given: Mapping[str, Any]) -> "ChatTemplate":
        return self.tool_use if self.tool_use is not None and given.get("tools") is not None else self

    def _render(
        self,
        messages: Sequence[Message],
        given: Mapping[str, Any],
        add_generation_prompt: bool,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        template = self._chosen(given)
        turns = [template._turn(message) for message in messages]
        values = {**given, "messages": turns, "add_generation_prompt": add_generation_prompt}
        text = template._fill(values, marks)
        template._check_calls(turns, text)
        return text

    def _fill(self, values: Mapping[str, Any], marks: tuple[str, str] = ("", "")) -> str:
        import jinja2

        try:
            given = {"tools": None, "documents": None, **self.variables, **self.options, **values, MARKS: marks}
            return self._template.render(given)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise DataError(f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}") from None

    def _turn(self, message: Message) -> dict[str, Any]:
        """Gives a message as the template sees it."""
        if message.original is None:
            return {"role": message.role, "content": message.text_content}
        turn = dict(message.original)
        if turn["role"] == "developer" and not self.reads("developer"):
            turn["role"] = "system"
        if is_text_parts(turn.get("content")) and not self._takes_parts:
            turn["content"] = "".join(part["text"] for part in turn["content"])
        thoughts = next((turn[name] for name in REASONING if name in turn), None)
        if thoughts is not None:
            turn = {"thinking": thoughts, **turn, "reasoning_content": thoughts}
        return turn

    def _check_calls(self, turns: Sequence[Mapping[str, Any]], text: str) -> None:
        """Raises DataError where arguments that are JSON text were written as a text in quotes: all are or none."""
        found = (
            (arguments, f"messages[{number}].tool_calls[{i}].function.arguments")
            for number, turn in enumerate(turns)
            if turn["role"] == "assistant"
            for i, call in enumerate(turn.get("tool_calls") or ())
            if isinstance(arguments := call.get("function", call).get("arguments"), str) and arguments
        )
        arguments, where = next(found, ("", ""))
        if arguments and json.dumps(arguments, ensure_ascii=False) in text:
            raise DataError(
                f"{where} is JSON text, which {self.name} writes in quotes, as in transformers; make it an object"
            )

    def _strftime_now(self, form: str) -> str:
        return (self.today or datetime.now()).strftime(form)

    def _marked(
        self, messages: Sequence[Message], given: Mapping[str, Any], text: str, wanted: Sequence[bool]
    ) -> list[Span]:
        """Finds the `{% generation %}` blocks of the answers that are `wanted`."""
        private_use = map(chr, range(0xE000, 0xF8FF))  # no template's own
        start, end = islice((character for character in private_use if character not in text), 2)
        pieces = re.split(f"([{start}{end}])", self._render(messages, given, False, (start, end)))
        spans: list[Span] = []
        at = 0
        for piece in pieces:
            if piece == start:
                spans.append((at, at))
            elif piece == end:
                spans[-1] = (spans[-1][0], at)
            else:
                at += len(piece)
        if len(spans) != len(wanted) and not all(wanted):
            raise DataError(
                f"{self.name} has {counted(len(spans), 'generation block')} for {counted(len(wanted), 'answer')}, so "
                "one of them cannot be left out of the loss alone"
            )
        return [span for span, is_wanted in zip(spans, wanted, strict=True) if is_wanted] if not all(wanted) else spans

    def _turns(self, messages: Sequence[Message], given: Mapping[str, Any], text: str, first: int, last: int) -> Span:
        """Finds the text of the messages from `first` to `last`."""
        is_answer = messages[first].role == "assistant"
        if first:
            start = self._length(messages[:first], given, text, add_generation_prompt=is_answer)
        else:
            start = len(commonprefix([text, self._with_other(messages, 0, given)])) if is_answer else 0
        if start is None:
            raise self._rewritten(first if is_answer else first - 1)
        if last + 1 == len(messages):
            return start, len(text)
        end = self._length(messages[: last + 1], given, text)
        if end is None and messages[last].role == "assistant":
            end = self._end_of_answer(messages, given, text, start, last)
        if end is None:
            raise self._rewritten(last)
        return start, end

    def _length(
        self, messages: Sequence[Message], given: Mapping[str, Any], text: str, add_generation_prompt: bool = False
    ) -> int | None:
        """Measures a part of a conversation; None where it reads otherwise than the `text` of the whole starts."""
        before = self.render(messages, add_generation_prompt, **given)
        return len(before) if text.startswith(before) else None

    def _rewritten(self, turn: int) -> DataError:
        return DataError(
            f"{self.name} writes messages[{turn}] differently once more turns follow, so what has a loss is not "
            "known; mark the answers in it with {% generation %}, or train on the last answer of each row alone"
        )

    def _end_of_answer(
        self, messages: Sequence[Message], given: Mapping[str, Any], text: str, start: int, last: int
    ) -> int | None:
        """Finds the end of an answer that reads differently as the last turn: what closes it, once before the next."""
        close = self._with_other(messages[: last + 1], last, given).rpartition(OTHER)[2]
        following = len(commonprefix([text, self._with_other(messages, last + 1, given)]))
        once = close.strip() != "" and text.count(close, start, following) == 1
        return text.index(close, start) + len(close) if once else None

    def _with_other(self, messages: Sequence[Message], index: int, given: Mapping[str, Any]) -> str:
        """Writes a conversation with another text in the place of one message."""
        turn = {name: value for name, value in self._turn(messages[index]).items() if name != "tool_calls"}
        other = Message(messages[index].role, OTHER, original=turn | {"content": OTHER})
        return self.render([*messages[:index], other, *messages[index + 1 :]], **given)


def find_chat_template(
    folder: Path, tokenizer_config: Mapping[str, Any], name: str = "default"
) -> tuple[str, str] | None:
    """Finds the source and the place of a folder's chat template, as transformers does; None where it has none.

    `name`: which of several.
    """
    file = folder / (FILE if name == "default" else f"{MORE_TEMPLATES}/{name}.jinja")
    if (folder / FILE).is_file():
        if not file.is_file():
            return None
        if target := leads_out(file):  # a checkpoint takes the text along
            raise DataError(f"{file} is a link to {target}, outside of its folder; put a copy in its place")
        return file.read_text(encoding="utf-8"), str(file)
    found = tokenizer_config.get(CHAT_TEMPLATE)
    if isinstance(found, list):
        found = {template["name"]: template["template"] for template in found}
    if isinstance(found, dict):
        found = found.get(name)
    elif name != "default":
        found = None
    return (found, f"{folder / 'tokenizer_config.json'}: {CHAT_TEMPLATE}") if found else None


def get_chat_template(folder: Path, tokenizer_config: Mapping[str, Any], variables: Mapping[str, Any]) -> ChatTemplate:
    """Reads the chat template of a tokenizer; DataError where there is none."""
    found = find_chat_template(folder, tokenizer_config)
    if found is None:
        raise DataError(
            f"tokenizer.prompt_template is {CHAT_TEMPLATE}, but {folder} has none: no {FILE}, nor one in "
            "tokenizer_config.json; put one there, or name a template such as torchtune_lite.data.ChatMLTemplate"
        )
    tools = find_chat_template(folder, tokenizer_config, TOOL_USE)
    tool_use = ChatTemplate(tools[0], variables, tools[1]) if tools else None
    return ChatTemplate(found[0], variables, found[1], tool_use)


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Lists the first and last index of each run of true flags."""
    starts = [i for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1])]
    ends = [i for i, flag in enumerate(flags) if flag and (i + 1 == len(flags) or not flags[i + 1])]
    return list(zip(starts, ends, strict=True))
