"""A Modelfile for Ollama, which writes chats by a template of its own language, Go's.

What a chat template puts around each role's text is found by writing a chat with it. Where that is all that it does,
it is written in Go; where it does more, Ollama is left to the template in the GGUF, which newer versions read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path

from torchtune_lite.data import ChatTemplate, Message, ModelTokenizer, SentencePieceTokenizer
from torchtune_lite.errors import DataError
from torchtune_lite.export.gguf.vocabulary import chat_template_of
from torchtune_lite.export.source import Source
from torchtune_lite.utils import get_logger

ROLES = ("system", "user", "assistant")
MARKS = {role: f"<the text of the {role}>" for role in ROLES}
CHATS = (("system", "user"), ("system", "user", "assistant", "user", "assistant", "user"))
GO = (
    "{{{{ range .Messages }}}}"
    '{{{{ if eq .Role "system" }}}}{system[0]}{{{{ .Content }}}}{system[1]}'
    '{{{{ else if eq .Role "user" }}}}{user[0]}{{{{ .Content }}}}{user[1]}'
    "{{{{ else }}}}{assistant[0]}{{{{ .Content }}}}{assistant[1]}{{{{ end }}}}"
    "{{{{ end }}}}{assistant[0]}"
)

log = get_logger()


@dataclass(frozen=True)
class Form:
    """What stands before and after the text of each role, and the system prompt of a chat that has none."""

    around: dict[str, tuple[str, str]]
    system: str | None = None

    def written(self, roles: Sequence[str], texts: Mapping[str, str] = MARKS) -> str:
        """Write a chat of these roles, up to where the next answer starts."""
        parts = [f"{self.around[role][0]}{texts[role]}{self.around[role][1]}" for role in roles]
        return "".join(parts) + self.around["assistant"][0]


def write_modelfile(source: Source, path: Path, gguf: str, adds_bos: bool) -> None:
    """Write a Modelfile for the file `gguf` beside it; `adds_bos`: BOS is put before a text without being written."""
    tokenizer, lines = source.tokenizer, [f"FROM ./{gguf}"]
    if (written := chat_template_of(tokenizer)) is not None:
        template = ChatTemplate(written, tokenizer.template_variables)
        form, start = form_of(template), ""
        if form is None and tokenizer.bos_id is not None:
            bos = spelled(tokenizer, tokenizer.bos_id)
            form, start = form_of(template, bos), "" if adds_bos else bos
        if form is None or any('"""' in part or "{{" in part for pair in form.around.values() for part in pair):
            log.warning(
                "the chat template cannot be written in Go's language; Ollama takes what it makes of the GGUF's"
            )
        else:
            lines.append(f'TEMPLATE """{start}{GO.format(**form.around)}"""')
            lines += [] if form.system is None else [f'SYSTEM """{form.system}"""']
    if tokenizer.turn_end is not None:
        lines.append(f'PARAMETER stop "{spelled(tokenizer, tokenizer.turn_end)}"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def spelled(tokenizer: ModelTokenizer, token: int) -> str:
    """Return the text by which a chat template spells a token."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.piece(token)
    return tokenizer.tokenizer.id_to_token(token)


def form_of(template: ChatTemplate, bos: str = "") -> Form | None:
    """Find the form of a chat template; None where it does more than to put something around each text.

    `bos` starts each chat, and is not part of the form.
    """
    try:
        written = {chat: _written(template, chat) for chat in (*CHATS, ("user",))}
    except DataError:  # it has no place for a system prompt, say
        return None
    if not all(text.startswith(bos) for text in written.values()):
        return None
    written = {chat: text.removeprefix(bos) for chat, text in written.items()}
    pieces = re.split("|".join(MARKS.values()), written[CHATS[1]])
    if len(pieces) != len(CHATS[1]) + 1:
        return None
    fitting = [form for form in _forms(pieces) if all(written[chat] == form.written(chat) for chat in CHATS)]
    fitting.sort(key=lambda form: -len(commonprefix([before for before, _ in form.around.values()])))
    found = (_with_default(form, written[("user",)]) for form in fitting)
    return next(filter(None, found), None)


def _written(template: ChatTemplate, roles: Sequence[str]) -> str:
    return template.prompt([Message(role, MARKS[role]) for role in roles])


def _forms(pieces: Sequence[str]) -> Iterator[Form]:
    """Yield the forms that a chat of all roles, in the pieces between its texts, may have."""
    before_system, before_user, before_answer, before_next = pieces[:4]
    for i in range(len(before_user) + 1):
        for j in range(len(before_answer) + 1):
            if before_next.endswith(before_user[i:]):
                user, answer = (before_user[i:], before_answer[:j]), before_next.removesuffix(before_user[i:])
                yield Form(
                    {"system": (before_system, before_user[:i]), "user": user, "assistant": (before_answer[j:], answer)}
                )


def _with_default(form: Form, user_alone: str) -> Form | None:
    """Return a form with the system prompt that a chat without one has; None where that is not one."""
    if user_alone == form.written(["user"]):
        return form
    shown = re.escape(form.written(["system", "user"])).replace(re.escape(MARKS["system"]), "(.*)")
    found = re.fullmatch(shown, user_alone, re.DOTALL)
    return replace(form, system=found[1]) if found else None
