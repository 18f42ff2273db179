"""A checkpoint's own chat template: Jinja, rendered as transformers renders it, and which of the text has a loss.

A template comes with a download, so it runs in Jinja's sandbox and sees plain values only.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from torchtune_lite.data.messages import Message, is_text_parts
from torchtune_lite.data.tokenizers.answers import OTHER, Answers, Span
from torchtune_lite.data.tokenizers.files import leads_out
from torchtune_lite.data.tokenizers.template_compiler import MARKS, compile_template
from torchtune_lite.errors import ConfigError, DataError

CHAT_TEMPLATE = "chat_template"
"""The value of a config's `prompt_template` for the template that came with the tokenizer."""

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

THINKING = "enable_thinking"
"""The variable by which templates of models that think are told not to."""

TRIED_ANSWERS = (
    {"content": "b"},
    {"content": "b", "reasoning_content": "c"},
    {"content": "<think>\nc\n</think>\n\nb"},
)
TRIED_TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]
"""An earlier answer and tools, with which it is tried whether later turns change what was written."""


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
        self.marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_template": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._template = compile_template(self.source, self.name, self._strftime_now)

    def reads(self, field: str) -> bool:
        """Return whether the template names a field of a turn, or a variable."""
        found = re.search(rf"\b{re.escape(field)}\b", self.source) is not None
        return found or (self.tool_use is not None and self.tool_use.reads(field))

    def set_options(self, options: Mapping[str, Any], today: date | None) -> None:
        """Set the variables of all conversations and the date, also of the template for tools."""
        for template in filter(None, (self, self.tool_use)):
            template.options, template.today = dict(options), today

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, **given: Any) -> str:
        """Write a conversation as text; with `add_generation_prompt` up to where an answer starts."""
        return self.write(messages, given, add_generation_prompt)

    def prompt(self, messages: Sequence[Message], **given: Any) -> str:
        """Write a conversation whose last turn stays open: an answer that the model starts, or goes on with."""
        if messages[-1].role != "assistant":
            return self.render(messages, add_generation_prompt=True, **given)
        return self.render(messages[:-1], add_generation_prompt=True, **given) + messages[-1].text_content

    def loss_spans(self, messages: Sequence[Message], **given: Any) -> tuple[str, Iterable[Span]]:
        """Write a conversation and tell the parts of the text, start and end, that have a loss, in their order.

        An answer is what the template puts in a `{% generation %}` block. In a template without them, or where other
        turns have a loss too, it is what follows the generation prompt, up to where the next turn starts; for that each
        turn must stay as it was when later ones are added, else DataError. An answer that opens the conversation starts
        with its content. These parts are looked for when they are asked for: each takes renderings of the turns before
        it, which those that will be cut off need not have.
        """
        answers = Answers(self._chosen(given), messages, given)
        return answers.text, answers.spans()

    def rewrites(self, messages: Sequence[Message], **given: Any) -> bool:
        """Return whether an answer that has a loss reads otherwise in the conversation than as its last turn."""
        template = self._chosen(given)
        return template.may_rewrite and Answers(template, messages, given).change()

    @cached_property
    def may_rewrite(self) -> bool:
        """Return whether later turns change what the template wrote, as tried on a few short conversations."""
        tools = [{}, {"tools": TRIED_TOOLS}] if self.reads("tools") else [{}]
        systems = [[], [Message("system", "s")]]
        for answer, system, given in product(TRIED_ANSWERS, systems, tools):
            first = Message("assistant", "b", original={"role": "assistant", **answer})
            turns = [*system, Message("user", "a"), first, Message("user", "d"), Message("assistant", "e")]
            try:
                if Answers(self, turns, given).change():
                    return True
            except DataError:  # it wants another form of conversation
                continue
        return False

    @cached_property
    def no_thoughts(self) -> str:
        """The end of a prompt with thinking off, with which an answer without thoughts begins."""
        try:
            on, off = (self.render([Message("user", "a")], True, **{THINKING: flag}) for flag in (True, False))
        except DataError:
            return ""
        return off.removeprefix(on) if off.startswith(on) else ""

    @cached_property
    def closing(self) -> str:
        """The end of every conversation in the template: in Llama 3's first one, the next answer's prompt."""
        turns = [Message("user", "a"), Message("assistant", "b")]
        try:
            closing, *others = (self.render(turns[:count]) for count in range(3))
        except DataError:
            return ""
        return closing if all(text.endswith(closing) for text in others) else ""

    @cached_property
    def marks_prompt(self) -> bool:
        """Return whether the template's blocks hold the prompt of an answer, too."""
        turns = [Message("user", "a"), Message("assistant", "b")]
        try:
            first, *_ = Answers(self, turns, {}).blocks()
            return first[0] < len(self.prompt(turns[:1]))
        except (DataError, ValueError):
            return False

    @cached_property
    def _takes_parts(self) -> bool:
        """Return whether the template writes the texts of a list of parts, rather than the list itself or nothing."""
        turns = [{"role": role, "content": [{"type": "text", "text": OTHER}]} for role in ("user", "assistant")]
        try:
            text = self._fill({"messages": turns, "add_generation_prompt": False})
        except DataError:
            return False
        return text.count(OTHER) == len(turns) and "'type'" not in text

    def _chosen(self, given: Mapping[str, Any]) -> "ChatTemplate":
        return self.tool_use if self.tool_use is not None and given.get("tools") is not None else self

    def write(
        self,
        messages: Sequence[Message],
        given: Mapping[str, Any],
        add_generation_prompt: bool,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """Write a conversation as `render` does, with the two `marks` around each `{% generation %}` block."""
        template = self._chosen(given)
        turns = [template.turn(message) for message in messages]
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

    def turn(self, message: Message) -> dict[str, Any]:
        """Return a message as the template sees it."""
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
        """Raise DataError where arguments that are JSON text were written as a text in quotes: all are or none."""
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


def find_chat_template(
    folder: Path, tokenizer_config: Mapping[str, Any], name: str = "default"
) -> tuple[str, str] | None:
    """Find the source and the place of a folder's chat template, as transformers does; None where it has none.

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
    """Read the chat template of a tokenizer; DataError where there is none."""
    found = find_chat_template(folder, tokenizer_config)
    if found is None:
        raise DataError(
            f"tokenizer.prompt_template is {CHAT_TEMPLATE}, but {folder} has none: no {FILE}, nor one in "
            "tokenizer_config.json; put one there, or name a template such as torchtune_lite.data.ChatMLTemplate, "
            "or null for the bare messages"
        )
    tools = find_chat_template(folder, tokenizer_config, TOOL_USE)
    tool_use = ChatTemplate(tools[0], variables, tools[1]) if tools else None
    return ChatTemplate(found[0], variables, found[1], tool_use)


def parsed_date(text: str | None) -> date | None:
    """Read the date that a config gives a template as today's."""
    try:
        return None if text is None else date.fromisoformat(str(text))
    except ValueError:
        raise ConfigError(
            f"tokenizer.chat_template_kwargs.{STRFTIME}={text!r} is not a date such as 2025-01-31"
        ) from None
