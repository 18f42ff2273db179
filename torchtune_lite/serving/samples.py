"""The answers to a request, piece by piece as they come from the worker, as text."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torchtune_lite.datasets.inspection import special_names
from torchtune_lite.generation import TextStream
from torchtune_lite.generation.text import REPLACEMENT
from torchtune_lite.serving.parameters import Call, RequestError
from torchtune_lite.serving.worker import Progress, Worker

CONTEXT = 8
"""Tokens before one that its text is decoded with: alone it would lose the space it starts with."""


@dataclass(frozen=True)
class Token:
    """A token of an answer: its text, its log-probability, and the likeliest ones in its place."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """What sample `index` of a request's answers has got: text, tokens, and at its end a reason.

    `logprobs` has the tokens where the request wants them. `text` may lag behind them, until a character is whole, and
    ends before a stop string.
    """

    index: int
    text: str
    num_tokens: int
    logprobs: list[Token]
    finish_reason: str | None


class Sample:
    """One answer, made into pieces as it comes; `after` are the tokens that its text goes on from.

    `names` are those of the tokens that stand for no text.
    """

    def __init__(
        self, index: int, tokenizer: Any, names: Mapping[int, str], stop_strings: Sequence[str], after: Sequence[int]
    ) -> None:
        self.index, self._tokenizer, self._names = index, tokenizer, names
        self._context = list(after[-CONTEXT:])
        self._stream = TextStream(tokenizer, stop_strings, self._context)

    def piece(self, progress: Progress) -> Piece:
        """Return what is new."""
        text = "".join(map(self._stream.push, progress.tokens))
        if progress.finish_reason is not None:
            text += self._stream.finish()
        noted = [self._token(*each) for each in zip(progress.tokens, progress.logprobs, strict=False)]
        return Piece(self.index, text, len(progress.tokens), noted, progress.finish_reason)

    def _token(self, token: int, note: Any) -> Token:
        top = [(self._text(other), logprob) for other, logprob in note.top]
        text = self._text(token)
        self._context = [*self._context, token][-CONTEXT:]
        return Token(text, note.logprob, top)

    def _text(self, token: int) -> str:
        """Return the text that a token adds to those before it, or the name of a special one.

        Of a character in several tokens, the last one has it, the others U+FFFD.
        """
        before, whole = (self._tokenizer.decode(ids) for ids in (self._context, [*self._context, token]))
        return self._names.get(token) or whole[len(before.rstrip(REPLACEMENT)) :]


async def pieces(call: Call, worker: Worker, tokenizer: Any) -> AsyncIterator[Piece]:
    """Yield the answers to a request as they come, those to prompt i from index i * n on; closing it cancels them.

    RequestError where the server stops meanwhile.
    """
    loop, news = asyncio.get_running_loop(), asyncio.Queue()
    samples: list[Sample] = []

    def listener(sample: Sample) -> Any:
        def listen(progress: Progress) -> None:  # in the worker's thread
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(news.put_nowait, (sample, progress))

        return listen

    orders, names = [], special_names(tokenizer)
    try:
        for prompt, sampling in zip(call.prompts, call.samplings, strict=True):
            after, first = prompt if call.continues else (), len(samples)
            own = [Sample(first + i, tokenizer, names, sampling.stop_strings, after) for i in range(call.n)]
            samples += own
            orders.append(worker.submit(prompt, sampling, [listener(sample) for sample in own]))
        running = len(samples)
        while running:
            sample, progress = await news.get()
            if progress.finish_reason == "cancelled":
                raise RequestError("the server is stopping", status=503)
            running -= progress.finish_reason is not None
            yield sample.piece(progress)
    finally:
        for order in orders:
            worker.cancel(order)
