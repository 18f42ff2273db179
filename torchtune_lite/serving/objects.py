"""The objects of OpenAI's API that answers are sent as."""

import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from torchtune_lite.generation.text import REPLACEMENT
from torchtune_lite.serving.parameters import RequestError
from torchtune_lite.serving.samples import Piece

JSON = dict[str, Any]
SERVER_ERROR = 500


class Answer:
    """The answers to one request, of `num_samples`: one object at the end, or chunks as they come.

    `with_logprobs`: the request wants those of the tokens. `num_running` counts the samples that have not ended.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, num_samples: int, prompt_tokens: int, with_logprobs: bool) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._with_logprobs = with_logprobs
        self._pieces: list[list[Piece]] = [[] for _ in range(num_samples)]
        self.num_running, self.prompt_tokens, self.completion_tokens = num_samples, prompt_tokens, 0

    def add(self, piece: Piece) -> None:
        """Take in what a sample has got."""
        self._pieces[piece.index].append(piece)
        self.completion_tokens += piece.num_tokens
        self.num_running -= piece.finish_reason is not None

    def whole(self) -> JSON:
        """Return the object of all that was added."""
        choices = [
            self._choice(index, "".join(piece.text for piece in pieces), pieces)
            | {"finish_reason": pieces[-1].finish_reason}
            for index, pieces in enumerate(self._pieces)
        ]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self._usage()}

    def chunks(self, piece: Piece, include_usage: bool) -> Iterator[JSON]:
        """Yield what is sent when a piece has come, which was added; the usage in the end, if that is wanted."""
        null = {"usage": None} if include_usage else {}
        if piece.text or piece.logprobs or piece.finish_reason:
            choice = self._delta(piece) | {"finish_reason": piece.finish_reason}
            yield {**self._head, "object": self.chunk_kind, "choices": [choice], **null}
        if include_usage and not self.num_running:
            yield {**self._head, "object": self.chunk_kind, "choices": [], "usage": self._usage()}

    def _usage(self) -> JSON:
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return tokens | {"total_tokens": sum(tokens.values())}

    def _choice(self, index: int, text: str, pieces: Sequence[Piece]) -> JSON:
        """Return a sample as a whole."""
        raise NotImplementedError

    def _delta(self, piece: Piece) -> JSON:
        """Return what is new of a sample."""
        raise NotImplementedError


class ChatAnswer(Answer):
    """Answers of `/v1/chat/completions`."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._begun: set[int] = set()

    def _choice(self, index: int, text: str, pieces: Sequence[Piece]) -> JSON:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(pieces)}

    def _delta(self, piece: Piece) -> JSON:
        role = {} if piece.index in self._begun else {"role": "assistant"}
        self._begun.add(piece.index)
        delta = {**role, "content": piece.text}
        return {"index": piece.index, "delta": delta, "logprobs": self._logprobs([piece])}

    def _logprobs(self, pieces: Sequence[Piece]) -> JSON | None:
        if not self._with_logprobs:
            return None
        content = [
            _token(token.text, token.logprob) | {"top_logprobs": [_token(*other) for other in token.top]}
            for piece in pieces
            for token in piece.logprobs
        ]
        return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> JSON:
    """Describe a token; one that is a part of a character has no bytes here, all of which are the last part's."""
    return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


class CompletionAnswer(Answer):
    """Answers of `/v1/completions`."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, num_samples: int, *args: Any) -> None:
        super().__init__(model, num_samples, *args)
        self._lengths = [0] * num_samples  # of what chunks have told

    def _choice(self, index: int, text: str, pieces: Sequence[Piece]) -> JSON:
        return {"index": index, "text": text, "logprobs": self._logprobs(pieces, 0)}

    def _delta(self, piece: Piece) -> JSON:
        before = self._lengths[piece.index]
        self._lengths[piece.index] += sum(len(token.text) for token in piece.logprobs)
        return {"index": piece.index, "text": piece.text, "logprobs": self._logprobs([piece], before)}

    def _logprobs(self, pieces: Sequence[Piece], start: int) -> JSON | None:
        if not self._with_logprobs:
            return None
        tokens = [token for piece in pieces for token in piece.logprobs]
        ends = accumulate((len(token.text) for token in tokens), initial=start)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": list(ends)[:-1],
        }


def error_object(error: RequestError) -> JSON:
    """Return the object that says why a request is not answered."""
    kind = "server_error" if error.status >= SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def model_object(name: str, created: int, max_seq_len: int) -> JSON:
    """Return the description of a model."""
    owner = {"owned_by": "torchtune_lite", "max_model_len": max_seq_len}
    return {"id": name, "object": "model", "created": created, **owner}
