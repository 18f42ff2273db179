"""A prompt that is being answered."""

from collections.abc import Collection, Sequence

from torchtune_lite.generation.sampling import Sampling, TokenLogprobs
from torchtune_lite.generation.text import TextStream


class Request:
    """A prompt and its answer so far, of at most `max_new_tokens`; `number` counts the samples of a prompt."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_new_tokens: int,
        number: int = 0,
        stream: TextStream | None = None,
    ) -> None:
        self.prompt, self.sampling, self.max_new_tokens = list(prompt), sampling, max_new_tokens
        self.tokens: list[int] = []
        """The answer, without the stop token."""
        self.logprobs: list[TokenLogprobs] = []
        """Of each of `tokens`, where `sampling.logprobs` asks for them."""
        self.finish_reason: str | None = None
        """None while it runs, then "stop" (a stop token or string), "length" or "cancelled"."""
        self.dice = sampling.dice(number)
        self._stream = stream

    def add(self, token: int, stop_tokens: Collection[int], logprobs: TokenLogprobs | None = None) -> None:
        """Add the next token, unless it ends the answer."""
        if token in stop_tokens:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if self._stream is not None:
            self._stream.push(token)
        if self._stream is not None and self._stream.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.max_new_tokens:
            self.finish_reason = "length"
