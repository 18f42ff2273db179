"""Secrets, blanked in whatever is written down: config.yaml, logs, error lines, what loggers get, `tune env`."""

import os
import re
from collections.abc import Mapping
from typing import Any

BLANK = "***"

NAME = re.compile(r"(^|.*[_-])(api[_-]?key|access[_-]?key|token|secret|passw(or)?d|credentials?)", re.IGNORECASE)
NO_SECRET = re.compile(r".*(bos|cls|end|eos|image|mask|new|pad|sep|special|start|stop|unk)_token", re.IGNORECASE)
"""Names of values that are secret; and of those that only look so, the tokens of a tokenizer."""

IN_TEXT = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"  # Hugging Face; what is shorter may be the name of a folder
    r"|\bwandb_v\d_\w{16,}"  # W&B, and its older keys: 40 hex digits that are no part of a path or revision
    r"|(?<![\w/\\@.-])(?<!revision )[0-9a-f]{40}(?![\w/\\.-])"
)
ASSIGNED = re.compile(r"(?P<name>[A-Za-z_][\w-]*)(?P<sign>\s*=\s*['\"]?|['\"]:\s*['\"])[^\s'\",;)}\]]+")
SHORTEST = 8  # characters of an environment variable's value that is looked for in texts


def is_secret(name: Any) -> bool:
    """Tells by the name of a key or variable whether its value is secret."""
    return bool(NAME.fullmatch(str(name))) and not NO_SECRET.fullmatch(str(name))


def redact(node: Any) -> Any:
    """Returns a config or text with `***` for each secret: by its key, its form, or as a variable like HF_TOKEN.

    Null and booleans stay.
    """
    if isinstance(node, Mapping):
        return {key: _blanked(value) if is_secret(key) else redact(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [redact(each) for each in node]
    return _redact_text(node) if isinstance(node, str) else node


def _blanked(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return redact(value)
    return value if value is None or isinstance(value, bool) else BLANK


def _redact_text(text: str) -> str:
    for value in {value for name, value in os.environ.items() if is_secret(name) and len(value) >= SHORTEST}:
        text = text.replace(value, BLANK)
    text = IN_TEXT.sub(BLANK, text)
    return ASSIGNED.sub(
        lambda found: f"{found['name']}{found['sign']}{BLANK}" if is_secret(found["name"]) else found[0], text
    )
