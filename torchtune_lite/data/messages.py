"""Messages: the common form of every sample, and the transforms that make them from a row's columns.

A transform maps a row (a dict) to `{"messages": list[Message]}`, with `notes` where something of the row is not read or
read as text. A row it can't use raises DataError naming the column or message; the data set puts the file and line
before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torchtune_lite.data.columns import (
    Note,
    check_text,
    checked_column_map,
    column_text,
    column_value,
    has_column,
    unread,
)
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted

ROLES = ("system", "user", "assistant", "tool", "ipython")
TOOL_ROLES = ("tool", "ipython")
"""Roles of a tool's response: OpenAI's name and torchtune's."""

MaskingStrategy = Literal["train_on_all", "train_on_assistant", "train_on_last"]
"""The messages in the loss: all but the system prompt, the assistant's, or the assistant's last one."""

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
    by itself. `masked` leaves the message out of the loss; None: unless it is the assistant's. `ipython` marks a tool
    call, `eot` the end of a turn. `original` is the turn in OpenAI's form, with tool calls and whatever else a chat
    template may read; None: role and content are all of it.
    """

    role: str
    content: str | list[dict[str, Any]]
    masked: bool | None = None
    ipython: bool = False
    eot: bool = True
    original: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"role={self.role!r} is not one of {', '.join(ROLES)}")
        if self.masked is None:
            self.masked = self.role != "assistant"
        if not isinstance(self.content, list):
            self.content = [{"type": "text", "content": check_text(self.content, "content")}]

    @property
    def text_content(self) -> str:
        """The text of all parts."""
        return "".join(part["content"] for part in self.content if part["type"] == "text")


def is_text_parts(content: Any) -> bool:
    """Return whether a content is a list of parts in OpenAI's form, all of them text."""
    return isinstance(content, list) and len(content) > 0 and all(map(_is_text_part, content))


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and "text" in part


def validate_messages(messages: Sequence[Message]) -> None:
    """Raise DataError unless the turns make a conversation, naming the first message out of place.

    There must be two at least, the system prompt first, and no two questions or answers in a row.
    """
    if len(messages) < 2:
        raise DataError(f"has {counted(len(messages), 'message')}; a conversation needs a question and an answer")
    before = None
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise DataError(f"messages[{i}] is a system prompt; only the first message can be one")
        if message.role == "user" and before == "user":
            raise DataError(f"messages[{i}] is the second user message in a row; join the two or answer the first")
        if message.role == "assistant" and before == "assistant":
            raise DataError(f"messages[{i}] is the second assistant message in a row; join the two or ask in between")
        before = message.role


class Masking:
    """Takes messages out of the loss; one that is masked already stays so.

    `masking_strategy` decides where it is given, else `train_on_input`: True for all messages, False for the
    assistant's.
    """

    def __init__(self, train_on_input: bool, masking_strategy: MaskingStrategy | None = None) -> None:
        if masking_strategy not in (None, *get_args(MaskingStrategy)):
            raise ConfigError(
                f"masking_strategy={masking_strategy!r} is not one of {', '.join(get_args(MaskingStrategy))}"
            )
        self._strategy = masking_strategy or (None if train_on_input else "train_on_assistant")

    def __call__(self, messages: list[Message]) -> list[Message]:
        answers = [message for message in messages if message.role == "assistant"]
        for message in messages:
            message.masked |= {
                None: False,
                "train_on_all": message.role == "system",
                "train_on_assistant": message.role != "assistant",
                "train_on_last": not answers or message is not answers[-1],
            }[self._strategy]
        return messages


class AlpacaToMessages:
    """Makes the Alpaca prompt and its answer from the columns `instruction`, `input` and `output`.

    `input` may be missing or empty. `column_map` gives the file's own names for any of the three, or dotted paths.
    `train_on_input` and `masking_strategy` are those of `Masking`.
    """

    def __init__(
        self,
        train_on_input: bool = True,
        column_map: Mapping[str, str] | None = None,
        masking_strategy: MaskingStrategy | None = None,
    ) -> None:
        self._masked = Masking(train_on_input, masking_strategy)
        self.column_map = checked_column_map(column_map, ("instruction", "input", "output"))

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        notes = unread(row, self.column_map.values())

        def text(name: str) -> str:
            return column_text(row, self.column_map[name], f"column_map.{name}", notes)

        instruction, column = text("instruction"), self.column_map["input"]
        prompt = ALPACA_PROMPT.format(instruction=instruction)
        if has_column(row, column) and column_value(row, column, "column_map.input") not in (None, ""):
            prompt = ALPACA_PROMPT_WITH_INPUT.format(instruction=instruction, input=text("input"))
        turns = [Message("user", prompt, masked=False), Message("assistant", text("output"), masked=False)]
        return noted({"messages": self._masked(turns)}, notes)


class InputOutputToMessages:
    """Makes a question and an answer from the columns `input` and `output`.

    `column_map` gives the file's own names for either, or dotted paths. `new_system_prompt`: put before the question;
    None for none. `train_on_input` and `masking_strategy` are those of `Masking`.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        masking_strategy: MaskingStrategy | None = None,
    ) -> None:
        self._masked, self.new_system_prompt = Masking(train_on_input, masking_strategy), new_system_prompt
        self.column_map = checked_column_map(column_map, ("input", "output"))

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        notes = unread(row, self.column_map.values())
        roles = {"input": "user", "output": "assistant"}
        turns = [
            Message(roles[name], column_text(row, column, f"column_map.{name}", notes), masked=False)
            for name, column in self.column_map.items()
        ]
        return noted({"messages": self._masked(system_prompt(self.new_system_prompt) + turns)}, notes)


def system_prompt(prompt: str | None) -> list[Message]:
    """Return the message of a system prompt, which is never in the loss; none for None."""
    return [] if prompt is None else [Message("system", prompt, masked=True)]


def noted(sample: dict[str, Any], notes: set[Note]) -> dict[str, Any]:
    """Add the notes of a row to its sample, if there are any."""
    return {**sample, "notes": notes} if notes else sample


def texts(sample: Mapping[str, Any]) -> list[str]:
    """List the texts of a sample: of its messages, or of both sides of a pair, or its `text`."""
    messages = [message for name in ("messages", "chosen", "rejected") for message in sample.get(name, ())]
    return [message.text_content for message in messages] + ([sample["text"]] if "text" in sample else [])
