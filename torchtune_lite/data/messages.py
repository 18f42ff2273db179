"""Messages: the common form of every sample, and the transforms that make them from a row's columns.

A transform maps a row (a dict) to `{"messages": list[Message]}`. A row it can't use raises DataError naming the column
or message; the data set puts the file and line before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune_lite.errors import ConfigError, DataError

ROLES = ("system", "user", "assistant", "tool", "ipython")
"""`tool` and `ipython` are what a tool answered: OpenAI's name and torchtune's."""

SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The prompts of Stanford Alpaca (`train.py`)."""


@dataclass
class Message:
    """One turn of a conversation.

    `content` is text, kept as parts `{"type": "text", "content": …}`: a template adds parts, and each part is tokenised
    by itself. `masked` leaves the message out of the loss. `ipython` marks a tool call, `eot` the end of a turn.
    """

    role: str
    content: str | list[dict[str, Any]]
    masked: bool = False
    ipython: bool = False
    eot: bool = True

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"role={self.role!r} is not one of {', '.join(ROLES)}")
        if not isinstance(self.content, list):
            self.content = [{"type": "text", "content": check_text(self.content, "content")}]

    @property
    def text_content(self) -> str:
        """The text of all parts."""
        return "".join(part["content"] for part in self.content if part["type"] == "text")


def validate_messages(messages: Sequence[Message]) -> None:
    """Raises DataError unless the turns make a conversation, naming the first message out of place.

    There must be two at least, the system prompt first, each answer after a question or a tool's answer.
    """
    if len(messages) < 2:
        raise DataError(f"has {len(messages)} messages; a conversation needs a question and an answer")
    before = None
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise DataError(f"messages[{i}] is a system prompt; only the first message can be one")
        if message.role == "user" and before == "user":
            raise DataError(f"messages[{i}] is the second user message in a row; join the two or answer the first")
        if message.role == "assistant" and before in (None, "system", "assistant"):
            raise DataError(f"messages[{i}] is an assistant message that no user message precedes")
        before = message.role


class AlpacaToMessages:
    """Makes the Alpaca prompt and its answer from the columns `instruction`, `input` and `output`.

    `input` may be missing or empty. `column_map` gives the file's own names for any of the three.
    """

    def __init__(self, train_on_input: bool = True, column_map: Mapping[str, str] | None = None) -> None:
        self.train_on_input = train_on_input
        self.column_map = checked_column_map(column_map, ("instruction", "input", "output"))

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        instruction = self._text(row, "instruction")
        if row.get(self.column_map["input"]):
            prompt = ALPACA_PROMPT_WITH_INPUT.format(instruction=instruction, input=self._text(row, "input"))
        else:
            prompt = ALPACA_PROMPT.format(instruction=instruction)
        return {"messages": _question_and_answer(prompt, self._text(row, "output"), self.train_on_input)}

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        return column_text(row, self.column_map[name], f"column_map.{name}")


class InputOutputToMessages:
    """Makes a question and an answer from the columns `input` and `output`.

    `column_map` gives the file's own names for either. `new_system_prompt`: put before the question; None for none.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
    ) -> None:
        self.train_on_input, self.new_system_prompt = train_on_input, new_system_prompt
        self.column_map = checked_column_map(column_map, ("input", "output"))

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        question, answer = (column_text(row, column, f"column_map.{name}") for name, column in self.column_map.items())
        messages = _question_and_answer(question, answer, self.train_on_input)
        return {"messages": _system(self.new_system_prompt) + messages}


class ConversationToMessages:
    """Makes the messages of one conversation, all of whose assistant turns are in the loss.

    A row's `column` is a list of messages; `role_key` and `content_key` name the role and text of each, `roles` maps
    the file's roles. `new_system_prompt` replaces the conversation's own system prompt; None keeps it.
    """

    style: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]

    def __init__(self, column: str, train_on_input: bool = False, new_system_prompt: str | None = None) -> None:
        self.column, self.train_on_input, self.new_system_prompt = column, train_on_input, new_system_prompt

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        turns = column_value(row, self.column, "conversation_column")
        if not isinstance(turns, list):
            raise DataError(f"column {self.column!r} must be a list of messages, got {_kind(turns)}")
        messages = [self._message(turn, f"{self.column}[{i}]") for i, turn in enumerate(turns)]
        validate_messages(messages)
        if self.new_system_prompt is not None:
            messages = _system(self.new_system_prompt) + [m for m in messages if m.role != "system"]
        return {"messages": messages}

    def _message(self, turn: Any, where: str) -> Message:
        if not isinstance(turn, Mapping) or self.role_key not in turn or self.content_key not in turn:
            got = f"has keys {', '.join(map(str, turn))}" if isinstance(turn, Mapping) else f"is {_kind(turn)}"
            raise DataError(
                f"{where} {got}; conversation_style={self.style} wants {self.role_key!r} and {self.content_key!r}"
            )
        role = turn[self.role_key]
        if not isinstance(role, str) or role not in self.roles:
            raise DataError(f"{where}.{self.role_key}={role!r} is not one of {', '.join(self.roles)}")
        content = self._content(turn[self.content_key], f"{where}.{self.content_key}")
        masked = self.roles[role] != "assistant" and not self.train_on_input
        return Message(self.roles[role], content, masked)

    def _content(self, value: Any, where: str) -> str | list[dict[str, Any]]:
        return check_text(value, where)


class ShareGPTToMessages(ConversationToMessages):
    """ShareGPT's form: `{"from": "system" | "human" | "gpt", "value": text}`."""

    style, role_key, content_key, roles = "sharegpt", "from", "value", SHAREGPT_ROLES


class OpenAIToMessages(ConversationToMessages):
    """OpenAI's chat form: `{"role": …, "content": text or [{"type": "text", "text": text}, …]}`."""

    style, role_key, content_key, roles = "openai", "role", "content", {role: role for role in ROLES}

    def _content(self, value: Any, where: str) -> str | list[dict[str, Any]]:
        if not isinstance(value, list):
            return check_text(value, where)
        return [self._part(part, f"{where}[{i}]") for i, part in enumerate(value)]

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise DataError(f"{where} is not a text part, and only text can be trained on")
        return {"type": "text", "content": check_text(part.get("text"), f"{where}.text")}


def checked_column_map(column_map: Mapping[str, str] | None, names: Sequence[str]) -> dict[str, str]:
    """Gives the file's column for each of `names`: itself where `column_map` has none; ConfigError for another key."""
    unknown = [str(name) for name in column_map or () if name not in names]
    if unknown:
        raise ConfigError(f"column_map has unknown keys {', '.join(unknown)}; its keys are {', '.join(names)}")
    return {name: (column_map or {}).get(name, name) for name in names}


def column_value(row: Mapping[str, Any], column: str, setting: str) -> Any:
    """Reads a column; DataError lists the columns there are and names the `setting` that chooses another."""
    if column not in row:
        raise DataError(
            f"missing column {column!r} (has: {', '.join(map(str, row))}); set {setting} to the one that is meant"
        )
    return row[column]


def column_text(row: Mapping[str, Any], column: str, setting: str) -> str:
    """Reads a column that must be text."""
    return check_text(column_value(row, column, setting), f"column {column!r}")


def check_text(value: Any, where: str) -> str:
    """Returns `value` if it is text that UTF-8 can carry, else raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{where} must be text, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half a surrogate pair at character {error.start + 1}; mend the escape") from None
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _system(prompt: str | None) -> list[Message]:
    return [] if prompt is None else [Message("system", prompt, masked=True)]


def _question_and_answer(question: str, answer: str, train_on_input: bool) -> list[Message]:
    return [Message("user", question, masked=not train_on_input), Message("assistant", answer)]
