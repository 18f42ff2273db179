"""Secrets, blanked in whatever is written down: config.yaml, logs, error lines, what loggers get, `tune env`.

Every pattern takes time in proportion to the length of the text: it starts where a word starts, and no two of its
repetitions can share a text between them.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

BLANK = "***"

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""The words of a name such as `hf_token`, `WANDB_API_KEY`, `apiKey`."""

ENDS = ("password", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials", "apikey")
"""Endings of the last word of a secret's name, such as `PGPASSWORD`."""

LAST = {"auth", "authorization", "cookie", "dsn"}
AFTER = {
    "header": {"auth", "authorization"},
    "key": {
        *("access", "account", "admin", "api", "app", "auth", "client", "deploy", "encryption", "host", "license"),
        *("master", "private", "secret", "service", "session", "shared", "signing", "ssh", "storage", "subscription"),
        *("anthropic", "aws", "azure", "gemini", "github", "gitlab", "google", "hf", "openai", "wandb"),
    },
    "pass": {"admin", "db", "email", "ftp", "http", "mail", "mysql", "pg", "proxy", "redis", "root", "smtp", "user"},
    "str": {"conn", "connection"},
    "string": {"conn", "connection"},
    "uri": {"amqp", "broker", "database", "db", "mongo", "mongodb", "mysql", "postgres", "redis", "sqlalchemy"},
    "url": {"amqp", "broker", "database", "db", "mongo", "mongodb", "mysql", "postgres", "redis", "webhook"},
}
"""Last words that make a secret of a name, alone or after one of these."""

TOKENS = {
    *("audio", "begin", "bos", "class", "cls", "end", "eod", "eom", "eos", "eot", "first", "image", "last", "mask"),
    *("new", "next", "pad", "padding", "sep", "special", "start", "stop", "text", "think", "turn", "unk", "unknown"),
    "video",
}
PLAIN = {"foreign", "partition", "primary", "public", "sort"}
"""Words before `token` (a tokenizer's) and `key` in names that are not secrets."""

IN_TEXT = re.compile(
    r"\b(?:hf|api_org|gh[oprsu]|npm)_[A-Za-z0-9]{30,}"  # Hugging Face and others; a shorter one may be a folder's name
    r"|\bgithub_pat_\w{20,}|\b[rs]k_(?:live|test)_\w{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|(?<![\w-])(?:sk-(?=[\w-]{20})(?=[\w-]*\d)|glpat-(?=[\w-]{20})|xox[a-z]-(?=[\w-]{10})|AIza(?=[\w-]{35}))[\w-]+"
    r"|(?<![\w-])eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JWT
    r"|\bwandb_v\d_\w{16,}"  # W&B, and its older keys: 40 hex digits that are not part of a path or revision
    r"|(?<![\w/\\@.-])(?<!revision )[0-9a-f]{40}(?![\w/\\.-])"
    r"|(?<=://)[^\s/'\":]*:[^\s/'\"]+(?=@)"  # user and password of an address
    r"|(?<=[?&]sig=)[^\s&'\"]+"  # of a signed address
    r"|(?<=\bBearer )[\w.~+/=-]{8,}|(?i:(?<=\bauthorization: )|(?<=\bauthorization=))[^\s'\",]+(?: [^\s'\",]+)?"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"
)
ASSIGNED = re.compile(
    r"(?<![\w-])(?P<name>-{0,2}[A-Za-z_][\w-]*)(?P<sign>[ \t]{0,4}=[ \t]{0,4}|\\?['\"]:[ \t]{0,4}\\?(?=['\"]))"
    r"(?P<quote>['\"]?)(?:(?<=')[^'\n]+|(?<=\")[^\"\n]+|(?<!['\"])[^\s'\",;)}\]]+)"
)
SHORTEST = 8  # characters of an environment variable's value that is looked for in texts


def is_secret(name: Any) -> bool:
    """Tell by the name of a key or variable whether its value is secret."""
    words = [word.lower() for word in WORD.findall(str(name))]
    last, before = (words or [""])[-1], (words[-2:-1] or [""])[0]
    if last.endswith("token"):
        return (last.removesuffix("token") or before) not in TOKENS
    if last in ("key", "pass") and before and str(name).isupper():  # a variable, OPENAI_KEY
        return before not in PLAIN
    if last in ("pat", "pwd"):
        return before not in ("", "old")
    return last.endswith(ENDS) or last in LAST or before in AFTER.get(last, ())


def redact(node: Any) -> Any:
    """Return a config or text with `***` for each secret: by its key, its form, or as a variable like HF_TOKEN.

    Null and booleans stay.
    """
    if isinstance(node, Mapping):
        return {key: _blanked(value) if is_secret(key) else redact(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [redact(each) for each in node]
    return _redact_text(node) if isinstance(node, str) else node


def _blanked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _blanked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_blanked(each) for each in value]
    return value if value is None or isinstance(value, bool) else BLANK


def _redact_text(text: str) -> str:
    values = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, BLANK)
    text = IN_TEXT.sub(BLANK, text)
    return ASSIGNED.sub(
        lambda found: (
            f"{found['name']}{found['sign']}{found['quote']}{BLANK}" if is_secret(found["name"]) else found[0]
        ),
        text,
    )
