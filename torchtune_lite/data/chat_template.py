"""A checkpoint's own chat template: Jinja, rendered as transformers renders it, and which of the text has a loss.

A template comes with a download, so it runs in Jinja's sandbox and sees plain values only.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from torchtune_lite.data.messages import Message
from torchtune_lite.errors import ConfigError, DataError

Span = tuple[int, int]

CHAT_TEMPLATE = "chat_template"
"""What a config's `prompt_template` says for the template that came with the tokenizer."""

FILE = "chat_template.jinja"
MARKS = "_marks"  # a variable of a template, no state of it: a save in the background renders, too


class ChatTemplate:
    """A Jinja template `source` with `variables` such as `bos_token`; `name` is what errors call it.

    Raises DataError where the source is no Jinja, ConfigError where jinja2 is missing.
    """

    def __init__(self, source: str, variables: Mapping[str, str], name: str = CHAT_TEMPLATE) -> None:
        self.source, self.variables, self.name = source, dict(variables), name
        self._template = _compile(source, name)
        self._marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Writes a conversation as text; with `add_generation_prompt` up to where an answer starts."""
        return self._render(messages, add_generation_prompt, ("", ""))

    def prompt(self, messages: Sequence[Message]) -> str:
        """Writes a conversation whose last turn stays open: an answer that the model starts, or goes on with."""
        if messages[-1].role != "assistant":
            return self.render(messages, add_generation_prompt=True)
        return self.render(messages[:-1], add_generation_prompt=True) + messages[-1].text_content

    def loss_spans(self, messages: Sequence[Message]) -> tuple[str, Iterable[Span]]:
        """Writes a conversation and tells the parts of the text, start and end, that have a loss, in their order.

        An answer is what the template puts in a `{% generation %}` block. In a template without them, or where other
        turns have a loss too, it is what follows the generation prompt, up to where the next turn starts; for that each
        turn must stay as it was when later ones are added, else DataError. These parts are looked for when they are
        asked for: each takes a rendering of the turns before it, which those that will be cut off need not have.
        """
        text = self.render(messages)
        unmasked = [not message.masked for message in messages]
        is_answer = [message.role == "assistant" for message in messages]
        if self._marks_answers and not any(u and not a for u, a in zip(unmasked, is_answer, strict=True)):
            wanted = [u for u, a in zip(unmasked, is_answer, strict=True) if a]
            return text, self._marked(messages, text, wanted)
        return text, (self._turns(messages, text, first, last) for first, last in _runs(unmasked))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, marks: tuple[str, str]) -> str:
        import jinja2

        try:
            return self._template.render(
                messages=[as_dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
                **{MARKS: marks},
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise DataError(f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}") from None

    def _marked(self, messages: Sequence[Message], text: str, wanted: Sequence[bool]) -> list[Span]:
        """Finds the `{% generation %}` blocks of the answers that are `wanted`."""
        private_use = map(chr, range(0xE000, 0xF8FF))  # no template's own
        start, end = islice((character for character in private_use if character not in text), 2)
        pieces = re.split(f"([{start}{end}])", self._render(messages, False, (start, end)))
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
                f"{self.name} has {len(spans)} generation blocks for {len(wanted)} answers, so one of them cannot be "
                "left out of the loss alone"
            )
        return [span for span, is_wanted in zip(spans, wanted, strict=True) if is_wanted] if not all(wanted) else spans

    def _turns(self, messages: Sequence[Message], text: str, first: int, last: int) -> Span:
        """Finds the text of the messages from `first` to `last`."""
        is_answer = messages[first].role == "assistant"
        start = self._length(messages[:first], text, add_generation_prompt=is_answer) if first else 0
        whole = last + 1 == len(messages)
        return start, len(text) if whole else self._length(messages[: last + 1], text, add_generation_prompt=False)

    def _length(self, messages: Sequence[Message], text: str, add_generation_prompt: bool) -> int:
        before = self.render(messages, add_generation_prompt)
        if not text.startswith(before):
            turn = len(messages) - (not add_generation_prompt)
            raise DataError(
                f"{self.name} writes messages[{turn}] differently once more turns follow, so what has a loss is not "
                "known; mark the answers in it with {% generation %}, or train on the last answer of each row alone"
            )
        return len(before)


def find_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Finds the source and the place of a folder's chat template, as transformers does; None where it has none."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8"), str(folder / FILE)
    found = tokenizer_config.get(CHAT_TEMPLATE)
    if isinstance(found, list):
        found = {template["name"]: template["template"] for template in found}
    if isinstance(found, dict):
        found = found.get("default")
    return (found, f"{folder / 'tokenizer_config.json'}: {CHAT_TEMPLATE}") if found else None


def get_chat_template(folder: Path, tokenizer_config: Mapping[str, Any], variables: Mapping[str, str]) -> ChatTemplate:
    """Reads the chat template of a tokenizer; DataError where there is none."""
    found = find_chat_template(folder, tokenizer_config)
    if found is None:
        raise DataError(
            f"tokenizer.prompt_template is {CHAT_TEMPLATE}, but {folder} has none: no {FILE}, nor one in "
            "tokenizer_config.json; put one there, or name a template such as torchtune_lite.data.ChatMLTemplate"
        )
    return ChatTemplate(found[0], variables, found[1])


def as_dict(message: Message) -> dict[str, Any]:
    """Gives a message as chat templates expect it."""
    return {"role": message.role, "content": message.text_content}


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Lists the first and last index of each run of true flags."""
    starts = [i for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1])]
    ends = [i for i, flag in enumerate(flags) if flag and (i + 1 == len(flags) or not flags[i + 1])]
    return list(zip(starts, ends, strict=True))


def _compile(source: str, name: str) -> Any:
    """Compiles a template with the filters and functions that transformers gives it."""
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise ConfigError("chat templates need jinja2; pip install 'torchtune_lite[hf]'") from None

    class Generation(jinja2.ext.Extension):
        """`{% generation %}…{% endgeneration %}`, put between the two marks that the rendering is given."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_between_marks", [jinja2.nodes.ContextReference()])
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _between_marks(self, context: Any, caller: Any) -> str:
            start, end = context[MARKS]
            return f"{start}{caller()}{end}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise DataError(f"{name} is no Jinja template: line {getattr(error, 'lineno', '?')}: {error}") from None
