"""Text of tokens as they come, cut where it is certain."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
HELD = 8
"""Tokens that wait at most for the rest of a character: one of UTF-8 has four bytes."""


class TextStream:
    """The text of an answer, token by token, up to the first of `stop_strings`.

    What comes out joined is `tokenizer.decode` of all tokens, cut before that string. Each token costs the decoding of
    a few around it, not of the text so far.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop string has come."""
        self._decode, self._stop_strings = tokenizer.decode, tuple(stop_strings)
        self._done: list[int] = []  # tokens whose text is out, the last few: what follows depends on them
        self._waiting: list[int] = []
        self._text = ""  # decoded, and perhaps the beginning of a stop string

    def push(self, token: int) -> str:
        """Take a token and return the text that is certain with it, often its own; "" once `stopped`."""
        self._waiting.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """Return what was held back, when no token follows."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        if self.stopped:
            return ""
        before, text = self._decode(self._done), self._decode(self._done + self._waiting)
        whole = not text.endswith(REPLACEMENT) and len(text) > len(before)
        if self._waiting and (whole or final or len(self._waiting) > HELD):
            self._text += text[len(before) :]
            self._done, self._waiting = self._waiting, []
        return self._certain(final)

    def _certain(self, final: bool) -> str:
        """Take from `_text` what can be no part of a stop string."""
        text = self._text
        ends = [place for place in map(text.find, self._stop_strings) if place >= 0]
        if ends:
            self.stopped, self._text = True, ""
            return text[: min(ends)]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._text = text[len(text) - held :]
        return text[: len(text) - held]


def text_of(tokens: Sequence[int], tokenizer: Any, stop_strings: Sequence[str] = ()) -> str:
    """Return the text of a whole answer, up to the first of `stop_strings`."""
    text = tokenizer.decode(tokens)
    return text[: min((place for place in map(text.find, stop_strings) if place >= 0), default=None)]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
