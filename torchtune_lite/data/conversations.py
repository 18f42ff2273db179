"""Conversations: lists of messages in one column, in OpenAI's form or ShareGPT's."""

import json
from collections.abc import Mapping
from typing import Any

from torchtune_lite.data.columns import NOT_READ, Note, as_text, check_text, column_value, kind, unread
from torchtune_lite.data.messages import (
    ROLES,
    TOOL_ROLES,
    Masking,
    MaskingStrategy,
    Message,
    is_text_parts,
    noted,
    system_prompt,
    validate_messages,
)
from torchtune_lite.data.tokenizers.chat_template import RESERVED, STRFTIME
from torchtune_lite.errors import DataError

Turn = dict[str, Any]
"""A message in OpenAI's form."""

FLAGS = ("weight", "loss", "train", "training", "masked")
"""Keys of a turn that decide whether it is in the loss: `masked` when it is true, the others when they are not."""


class ConversationToMessages:
    """Makes the messages of one conversation; those of the assistant are in the loss unless told otherwise.

    A row's `column` (by name or dotted path) is a list of messages, or JSON text of one; `role_key` and `content_key`
    name the role and text of each, `roles` maps the file's roles. A turn with `weight: 0`, `loss: false`,
    `train: false`, `training: false` or `masked: true` is not in the loss, whatever the strategy; the other value
    changes nothing. A null anywhere is as if the key were not there. Each of an assistant's tool calls becomes a line
    `{"name": …, "arguments": {…}}` after its content, but for a chat template, which sees the turn itself.

    Beside the column a row may have `system`, a text that becomes the first turn, and for a chat template `tools` and
    `chat_template_kwargs`. Other columns, and keys of turns that the chat template does not name, are noted.
    `new_system_prompt` replaces the conversation's own system prompt; None keeps it. `train_on_input` and
    `masking_strategy` are those of `Masking`.
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

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        notes: set[Note] = set()
        messages = self.read(column_value(row, self.column, "conversation_column"), self.column, notes)
        sample = {"messages": self.finish(messages, row)}
        return noted(sample | self.beside(row, [self.column], notes), notes)

    def read(self, turns: Any, column: str, notes: set[Note]) -> list[Message]:
        """Read the messages of a column; what is wrong with one is said with its place in the column.

        The assistant's turn goes on through its calls and the tools' answers.
        """
        turns = _listed(turns)
        if not isinstance(turns, list):
            raise DataError(f"column {column!r} must be a list of messages, got {kind(turns)}")
        messages = [self._message(turn, f"{column}[{i}]", notes) for i, turn in enumerate(turns)]
        for message, after in zip(messages, [*messages[1:], None], strict=False):
            answered = after is not None and after.role in TOOL_ROLES
            message.eot = message.role not in TOOL_ROLES and not (message.role == "assistant" and answered)
        return messages

    def finish(self, messages: list[Message], row: Mapping[str, Any]) -> list[Message]:
        """Put the system prompt before the messages, check that they make a conversation, and mask them."""
        own = messages[0].text_content if messages and messages[0].role == "system" else None
        beside = row.get("system") or None
        if beside is not None and own is None:
            messages = system_prompt(check_text(beside, "column 'system'")) + messages
        elif beside not in (None, own):
            raise DataError("there is a column 'system', and another system prompt in the conversation; leave one out")
        validate_messages(messages)
        if self.new_system_prompt is not None:
            messages = system_prompt(self.new_system_prompt) + [m for m in messages if m.role != "system"]
        return self._masked(messages)

    def beside(self, row: Mapping[str, Any], columns: list[str], notes: set[Note]) -> dict[str, Any]:
        """Return what a row has for a chat template beside its `columns`; notes what nothing reads."""
        notes |= unread(row, [*columns, "system", "tools", "chat_template_kwargs"])
        given = _parsed(row.get("chat_template_kwargs")) or {}
        if not isinstance(given, Mapping):
            raise DataError(f"column 'chat_template_kwargs' must be an object, got {kind(given)}")
        if reserved := [name for name in given if name in (*RESERVED, STRFTIME)]:
            raise DataError(f"column 'chat_template_kwargs': {', '.join(reserved)} cannot be set; leave it out")
        notes |= {Note(NOT_READ, f"{key!r} of column 'chat_template_kwargs'", key) for key in given}
        if row.get("tools") not in (None, ""):
            given = {**given, "tools": _tools(row["tools"])}
            notes.add(Note(NOT_READ, "column 'tools'", "tools"))
        return {"chat_template_kwargs": given} if given else {}

    def _message(self, turn: Any, where: str, notes: set[Note]) -> Message:
        if not isinstance(turn, Mapping) or self.role_key not in turn:
            raise self._unlike(turn, where)
        role, given = turn[self.role_key], {key: value for key, value in turn.items() if value is not None}
        if not isinstance(role, str) or role not in self.roles:
            raise DataError(f"{where}.{self.role_key}={role!r} is not one of {', '.join(self.roles)}")
        masked = _is_masked(given, where)
        given = self._openai({key: value for key, value in given.items() if key not in FLAGS}, where)
        is_assistant = self.roles[role] == "assistant"
        calls = given.get("tool_calls") if is_assistant else None
        if "content" not in given and not calls and self.content_key not in turn:
            raise self._unlike(turn, where)
        if "content" in given or not calls:
            given["content"] = _content(given.get("content"), self.roles[role], f"{where}.{self.content_key}", notes)
        read = ("role", "content", "tool_calls") if is_assistant else ("role", "content")
        notes |= {Note(NOT_READ, f"{key!r} of a turn", key) for key in given if key not in read}
        content = _parts(given.get("content", ""))
        if calls:
            lines = "\n".join(_call_text(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))
            before = "\n" if any(part["content"] for part in content) else ""
            content = [part for part in content if part["content"]] + [{"type": "text", "content": before + lines}]
        return Message(self.roles[role], content, masked, ipython=bool(calls), original=given)

    def _unlike(self, turn: Any, where: str) -> DataError:
        got = f"has keys {', '.join(map(str, turn))}" if isinstance(turn, Mapping) else f"is {kind(turn)}"
        return DataError(
            f"{where} {got}; conversation_style={self.style} expects {self.role_key!r} and {self.content_key!r}"
        )

    def _openai(self, turn: Turn, where: str) -> Turn:
        """Return a turn that is not null anywhere in OpenAI's present form."""
        raise NotImplementedError


class ShareGPTToMessages(ConversationToMessages):
    """ShareGPT's form: `{"from": "system" | "human" | "gpt", "value": text}`, with other names for these roles.

    A `function_call` is JSON text of `{"name": …, "arguments": {…}}` or a list of them, an `observation` the answer.
    """

    style, default_column, role_key, content_key = "sharegpt", "conversations", "from", "value"
    calls = ("function_call", "tool_call")
    roles = {
        "system": "system",
        **dict.fromkeys(("human", "user"), "user"),
        **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", *calls), "assistant"),
        **dict.fromkeys(("observation", "tool", "tool_response", "function_response"), "tool"),
    }

    def _openai(self, turn: Turn, where: str) -> Turn:
        role, value = turn.pop("from"), turn.pop("value", None)
        if role not in self.calls:
            return {**turn, "role": self.roles[role]} | ({} if value is None else {"content": value})
        calls = _parsed(value)
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, Mapping) and "name" in call for call in calls):
            raise DataError(f'{where}.value of a {role} must be JSON text: {{"name": ..., "arguments": {{...}}}}')
        return {**turn, "role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}


class OpenAIToMessages(ConversationToMessages):
    """OpenAI's chat form: `{"role": …, "content": text or [{"type": "text", "text": text}, …]}`.

    An assistant's message with `tool_calls` may be without content; the answer is a message of the role `tool`, of
    which what is not text is JSON. Their older forms are `function_call` and the role `function`; `developer` is
    `system`.
    """

    style, default_column, role_key, content_key = "openai", "messages", "role", "content"
    roles = {role: role for role in ROLES} | {"developer": "system", "function": "tool"}

    def _openai(self, turn: Turn, where: str) -> Turn:
        if turn["role"] == "function":
            turn["role"] = "tool"
        if "function_call" in turn and turn["role"] == "assistant":
            turn["tool_calls"] = [{"type": "function", "function": turn.pop("function_call")}]
        if "tool_calls" in turn:
            turn["tool_calls"] = _listed(turn["tool_calls"])
            if not isinstance(turn["tool_calls"], list):
                raise DataError(f"{where}.tool_calls must be a list, got {kind(turn['tool_calls'])}")
        return turn


def _is_masked(turn: Turn, where: str) -> bool:
    flags = {name: turn[name] for name in FLAGS if name in turn}
    for name, value in flags.items():
        if value not in (0, 1):
            allowed = "0 (not in the loss) or 1" if name == "weight" else "true or false"
            raise DataError(f"{where}.{name}={value!r} must be {allowed}")
    return any(bool(value) == (name == "masked") for name, value in flags.items())


def _content(value: Any, role: str, where: str, notes: set[Note]) -> Any:
    """Check the content of a turn: text, parts that are text, or of a tool's answer anything."""
    if role in TOOL_ROLES and isinstance(value, list | Mapping) and not is_text_parts(value):
        return value
    if not isinstance(value, list) or not value:
        return as_text(value, where, "the content of a turn", notes)
    for i, part in enumerate(value):
        if not is_text_parts([part]):
            raise DataError(f"{where}[{i}] is not a text part, and only text can be trained on")
        check_text(part["text"], f"{where}[{i}].text")
    return value


def _parts(content: Any) -> list[dict[str, Any]]:
    """Return the parts of a message with a content, which is JSON where it is neither text nor parts."""
    if is_text_parts(content):
        return [{"type": "text", "content": part["text"]} for part in content]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return [{"type": "text", "content": text}]


def _call_text(call: Any, where: str) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where} has no function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # OpenAI writes them as JSON within JSON
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise DataError(f"{where}.function.arguments is not JSON; fix it") from None
    return json.dumps({"name": function["name"], "arguments": arguments or {}}, ensure_ascii=False)


def _tools(value: Any) -> list[Any]:
    """Read the tools of a row: a list of objects, any of it as JSON text."""
    tools = _parsed(value)
    tools = [_parsed(tool) for tool in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"column 'tools' must be a list of objects, or JSON text of one, got {kind(value)}")
    return tools


def _listed(value: Any) -> Any:
    """Return the list that a value stands for: JSON text of one, or a struct of lists, as Parquet may hold it."""
    if isinstance(value, Mapping):
        lists = {name: each for name, each in value.items() if each is not None}
        if all(isinstance(each, list) for each in lists.values()) and len(set(map(len, lists.values()))) == 1:
            return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]
    parsed = _parsed(value)
    return parsed if isinstance(parsed, list) else value


def _parsed(value: Any) -> Any:
    """Read text that is JSON; return anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
