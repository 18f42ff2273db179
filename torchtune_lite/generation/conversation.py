"""A conversation with a model, turn by turn."""

import time
from collections.abc import Iterator
from typing import Any

from torchtune_lite.data import Message
from torchtune_lite.errors import ConfigError
from torchtune_lite.generation.engine import Engine
from torchtune_lite.generation.prompts import tokens_of
from torchtune_lite.generation.request import Request
from torchtune_lite.generation.sampling import Sampling
from torchtune_lite.generation.text import TextStream


class Conversation:
    """Questions to a model and its answers, in the tokenizer's template.

    Each turn the conversation is encoded whole, as a sample of the training is; of what the engine still holds nothing
    is computed again. `system` is the system prompt, None for none.
    """

    def __init__(self, engine: Engine, tokenizer: Any, sampling: Sampling, system: str | None = None) -> None:
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Start anew, with another system prompt or the same."""
        self.system, self.seconds = system, 0.0
        self.last: Request | None = None
        """The last turn that was asked, with its tokens and why it ended, after `seconds`."""
        self.messages = [] if system is None else [Message("system", system)]

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to a question piece by piece, "" for a token whose character is not whole yet.

        Closing the iterator ends the answer, of which the conversation keeps what has been yielded; a question without
        any answer is dropped. ConfigError for a conversation that has become too long for the model.
        """
        question, answer, sent = Message("user", text), "", 0
        try:
            prompt = tokens_of(self.tokenizer, {"messages": [*self.messages, question]})
            [request] = self.engine.submit(prompt, self.sampling)
        except ConfigError as error:
            begin_anew = ", or start a new conversation" if self.last else ""
            raise ConfigError(f"{error}{begin_anew}") from error
        stream, start = TextStream(self.tokenizer, self.sampling.stop_strings), time.perf_counter()
        self.last = request
        try:
            while request.finish_reason is None:
                self.engine.step()
                piece = "".join(map(stream.push, request.tokens[sent:]))
                sent, answer = len(request.tokens), answer + piece
                yield piece
            rest = stream.finish()
            answer += rest
            yield rest
        finally:
            self.engine.cancel(request)
            self.seconds = time.perf_counter() - start
            if answer or request.finish_reason != "cancelled":
                self.messages += [question, Message("assistant", answer)]
