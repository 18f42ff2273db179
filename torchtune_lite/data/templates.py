"""Prompt templates: text put around the messages of each role, tokenised as ordinary text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from torchtune_lite import config
from torchtune_lite.data.messages import ROLES, TOOL_ROLES, Message
from torchtune_lite.errors import ConfigError, DataError

Template = Callable[[list[Message]], list[Message]]


class PromptTemplate:
    """Puts a prefix before and a suffix after the messages of each role in `template`; other roles stay as they are.

    `template`: role → (prefix, suffix), "" for nothing. The text around an assistant message is in the loss as the
    message is.
    """

    def __init__(self, template: Mapping[str, Sequence[str]]) -> None:
        for role, affixes in template.items():
            if role not in ROLES:
                raise ConfigError(f"prompt_template.{role}: the roles are {', '.join(ROLES)}")
            if isinstance(affixes, str) or not isinstance(affixes, Sequence) or len(affixes) != 2:
                raise ConfigError(f"prompt_template.{role} must be [prefix, suffix], '' for nothing; got {affixes!r}")
        self.template = {role: (prefix or "", suffix or "") for role, (prefix, suffix) in template.items()}

    def __call__(self, messages: list[Message]) -> list[Message]:
        return [_wrap(message, *self.template.get(message.role, ("", ""))) for message in messages]


class Llama2ChatTemplate:
    """Llama 2's chat form: `[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST] {assistant}`.

    Deviates from Meta's code as torchtune does: every user turn repeats the system prompt, not the first one alone.
    """

    def __call__(self, messages: list[Message]) -> list[Message]:
        system: list[dict[str, Any]] = []
        turns = []
        for message in messages:
            if message.role == "system":
                system = _wrap(message, "<<SYS>>\n", "\n<</SYS>>\n\n").content
            elif message.role == "user":
                turns.append(_wrap(replace(message, content=system + message.content), "[INST] ", " [/INST] "))
            else:
                turns.append(message)
        return turns


class MistralChatTemplate(PromptTemplate):
    """Mistral 7B Instruct's form (v0.1, v0.2): `[INST] {user} [/INST] {assistant}`; DataError for a system prompt."""

    def __init__(self) -> None:
        super().__init__({"user": ("[INST] ", " [/INST] ")})

    def __call__(self, messages: list[Message]) -> list[Message]:
        if any(message.role == "system" for message in messages):
            raise DataError("MistralChatTemplate has no place for a system prompt; put it into the first user message")
        return super().__call__(messages)


class ChatMLTemplate(PromptTemplate):
    """ChatML, tags as text; an empty last answer stays open, for the model to write it."""

    def __init__(self) -> None:
        end = "<|im_end|>\n"
        super().__init__({role: (f"<|im_start|>{role}\n", end) for role in ("system", "user", "assistant")})

    def __call__(self, messages: list[Message]) -> list[Message]:
        *turns, last = messages
        if last.role != "assistant" or last.text_content:
            return super().__call__(messages)
        return super().__call__(turns) + [_wrap(last, self.template["assistant"][0], "")]


QuestionAnswerTemplate = partial(PromptTemplate, {"user": ("Question: ", "\n\nAnswer: ")})
SummarizeTemplate = partial(PromptTemplate, {"user": ("Summarize this dialogue:\n", "\n---\nSummary:\n")})
GrammarErrorCorrectionTemplate = partial(
    PromptTemplate, {"user": ("Correct this to standard English: ", "\n---\nCorrected: ")}
)


def get_prompt_template(given: str | Mapping[str, Sequence[str]] | Template | None) -> Template | None:
    """Make a template from what a YAML can say: a dotted path, a mapping role → [prefix, suffix], or null for none."""
    if isinstance(given, str):
        try:
            return config.instantiate({"_component_": given})
        except ConfigError as error:
            raise ConfigError(f"prompt_template: {error}") from error
    return PromptTemplate(given) if isinstance(given, Mapping) else given


def written(messages: list[Message], template: Template | None) -> list[Message]:
    """Apply a template; what a tool answered ends its line where the template puts nothing around it."""
    bare = [message.content for message in messages if message.role in TOOL_ROLES and message.content]
    return [
        _ending_its_line(message) if message.role in TOOL_ROLES and message.content in bare else message
        for message in (template(messages) if template else messages)
    ]


def opened(messages: list[Message], template: Template | None) -> list[Message]:
    """Apply a template to a prompt; what it puts before an answer follows, for the model to go on from there."""
    turns = written(messages, template)
    if template is None or messages[-1].role == "assistant":
        return turns
    before, _ = _around_answer(messages, template)
    return [*turns, Message("assistant", before)] if before else turns


def endings(template: Template | None) -> tuple[str, ...]:
    """Return what a template puts after each answer, without the spaces and line ends at its end; () for nothing."""
    _, after = _around_answer([Message("user", "a")], template) if template else ([], [])
    text = "".join(part["content"] for part in after).rstrip()
    return (text,) if text else ()


def find_glued(messages: Sequence[Message], written: Sequence[Message]) -> str | None:
    """Return the text around the first place where a question and what follows it stand side by side, as written."""
    own = {part["content"] for message in messages for part in message.content}
    for before, after in pairwise(message for message in written if message.content):
        end, start = before.content[-1]["content"], after.content[0]["content"]
        joint = end[-1:] + start[:1]
        if before.role != "assistant" and {end, start} <= own and len(joint) == 2 and joint == joint.strip():
            return f"{end[-12:]}{start[:12]}"
    return None


def joined(messages: Sequence[Message], bos: str, eos: str, add_eos: bool) -> tuple[str, list[tuple[int, int]]]:
    """Write messages as one text, `bos` before each exchange, `eos` after each answer; and tells where the loss is.

    Without `add_eos` the last message stays open and ends with no space, with which the answer starts.
    """
    text, spans, starts = "", [], True
    for message in messages:
        text += bos if starts else ""
        start = len(text)
        starts = message.role == "assistant"
        text += message.text_content + (eos if starts and (add_eos or message is not messages[-1]) else "")
        if not message.masked:
            spans.append((start, len(text)))
    return text if add_eos else text.rstrip(" "), spans


def _around_answer(messages: list[Message], template: Template) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the parts that a template puts before and after the answer to a prompt."""
    answer = Message("assistant", "b").content[0]
    parts = template([*messages, Message("assistant", [answer])])[-1].content
    at = next((i for i, part in enumerate(parts) if part is answer), None)
    return ([], []) if at is None else (parts[:at], parts[at + 1 :])


def _wrap(message: Message, prefix: str, suffix: str) -> Message:
    before, after = ([{"type": "text", "content": text}] if text else [] for text in (prefix, suffix))
    return replace(message, content=before + message.content + after)


def _ending_its_line(message: Message) -> Message:
    *parts, last = message.content
    return replace(message, content=[*parts, {**last, "content": f"{last['content']}\n"}])
