"""Conversations: lists of messages in one column, in OpenAI's form or ShareGPT's."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchtune_lite.data.columns import check_text, column_value, kind
from torchtune_lite.data.messages import ROLES, Masking, MaskingStrategy, Message, system_prompt, validate_messages
from torchtune_lite.errors import DataError

SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


class ConversationToMessages:
    """Makes the messages of one conversation; those of the assistant are in the loss unless told otherwise.

    A row's `column` (by name or dotted path) is a list of messages; `role_key` and `content_key` name the role and text
    of each, `roles` maps the file's roles. `new_system_prompt` replaces the conversation's own system prompt; None
    keeps it. `train_on_input` and `masking_strategy` are those of `Masking`.
    """

    style: str
    default_column: str
    role_key: str
    content_key: str
    roles: Mapping[str, str]

    def __init__(
        self,
        column: str | None = None,
        train_on_input: bool = False,
        new_system_prompt: str | None = None,
        masking_strategy: MaskingStrategy | None = None,
    ) -> None:
        self.column, self.new_system_prompt = column or self.default_column, new_system_prompt
        self._masked = Masking(train_on_input, masking_strategy)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, list[Message]]:
        turns = column_value(row, self.column, "conversation_column")
        return {"messages": self.finish(self.read(turns, self.column))}

    def read(self, turns: Any, column: str) -> list[Message]:
        """Reads the messages of a column; what is wrong with one is said with its place in the column."""
        if not isinstance(turns, list):
            raise DataError(f"column {column!r} must be a list of messages, got {kind(turns)}")
        return [self._message(turn, f"{column}[{i}]") for i, turn in enumerate(turns)]

    def finish(self, messages: list[Message]) -> list[Message]:
        """Checks that messages make a conversation, puts the system prompt before them and masks them."""
        validate_messages(messages)
        if self.new_system_prompt is not None:
            messages = system_prompt(self.new_system_prompt) + [m for m in messages if m.role != "system"]
        return self._masked(messages)

    def _message(self, turn: Any, where: str) -> Message:
        if not isinstance(turn, Mapping) or self.role_key not in turn or self.content_key not in turn:
            got = f"has keys {', '.join(map(str, turn))}" if isinstance(turn, Mapping) else f"is {kind(turn)}"
            raise DataError(
                f"{where} {got}; conversation_style={self.style} wants {self.role_key!r} and {self.content_key!r}"
            )
        role = turn[self.role_key]
        if not isinstance(role, str) or role not in self.roles:
            raise DataError(f"{where}.{self.role_key}={role!r} is not one of {', '.join(self.roles)}")
        return Message(self.roles[role], self._content(turn[self.content_key], f"{where}.{self.content_key}"))

    def _content(self, value: Any, where: str) -> str | list[dict[str, Any]]:
        return check_text(value, where)


class ShareGPTToMessages(ConversationToMessages):
    """ShareGPT's form: `{"from": "system" | "human" | "gpt", "value": text}`."""

    style, default_column, role_key, content_key = "sharegpt", "conversations", "from", "value"
    roles = SHAREGPT_ROLES


class OpenAIToMessages(ConversationToMessages):
    """OpenAI's chat form: `{"role": …, "content": text or [{"type": "text", "text": text}, …]}`.

    A message with `weight: 0` or `masked: true` is not in the loss, whatever the strategy; `weight: 1` changes nothing.
    Each of an assistant's `tool_calls` becomes a line `{"name": …, "arguments": {…}}` after its content, which may be
    null; the tool's answer is a message of the role `tool`.
    """

    style, default_column, role_key, content_key = "openai", "messages", "role", "content"
    roles = {role: role for role in ROLES}

    def read(self, turns: Any, column: str) -> list[Message]:
        """Reads the messages of a column; the assistant's turn goes on through its calls and the tools' answers."""
        messages = super().read(turns, column)
        for message, after in zip(messages, [*messages[1:], None], strict=False):
            answered = after is not None and after.role in ("tool", "ipython")
            message.eot = message.role not in ("tool", "ipython") and not (message.role == "assistant" and answered)
        return messages

    def _message(self, turn: Any, where: str) -> Message:
        calls = turn.get("tool_calls") if isinstance(turn, Mapping) else None
        if calls and turn.get("role") == "assistant":
            text = "\n".join(_call_text(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))
            turn = {**turn, "content": _joined(turn.get("content"), text)}
        message = super()._message(turn, where)
        message.ipython = bool(calls)
        message.masked = _is_masked(turn, where)
        return message

    def _content(self, value: Any, where: str) -> str | list[dict[str, Any]]:
        if not isinstance(value, list):
            return check_text(value, where)
        return [self._part(part, f"{where}[{i}]") for i, part in enumerate(value)]

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise DataError(f"{where} is not a text part, and only text can be trained on")
        return {"type": "text", "content": check_text(part.get("text"), f"{where}.text")}


def _is_masked(turn: Mapping[str, Any], where: str) -> bool:
    weight, masked = turn.get("weight"), turn.get("masked")  # null where a Parquet column has it for other messages
    if weight not in (None, 0, 1):
        raise DataError(f"{where}.weight={weight!r} must be 0 (not in the loss) or 1")
    if masked not in (None, True, False):
        raise DataError(f"{where}.masked={masked!r} must be true or false")
    return weight == 0 or bool(masked)


def _call_text(call: Any, where: str) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where} has no function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI writes them as JSON within JSON
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise DataError(f"{where}.function.arguments is no JSON; mend it") from None
    return json.dumps({"name": function["name"], "arguments": arguments or {}}, ensure_ascii=False)


def _joined(content: Any, text: str) -> Any:
    """Puts a text after a message's content, on a line of its own."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [*content, {"type": "text", "text": f"\n{text}"}]
    return f"{content}\n{text}" if content and isinstance(content, str) else text if content in (None, "") else content
