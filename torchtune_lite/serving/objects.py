"""The objects of OpenAI's API that answers are sent as."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from torchtune_lite.errors import TuneError
from torchtune_lite.serving.samples import Piece, Token
from torchtune_lite.serving.parameters import RequestError

JSON = dict[str, Any]


class Answer:
    """The answers to one request, to each of its `num_samples`: sent whole at the end, or in chunks as they come."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, num_samples: int, prompt_tokens: int, with_logprobs: bool) -> None:
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.with_logprobs, self.prompt_tokens, self.completion_tokens = with_logprobs, prompt_tokens, 0
        self._pieces: list[list[Piece]] = [[] for _ in range(num_samples)]

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        self._pieces[piece.index].append(piece)
        self.completion_tokens += piece.num_tokens

    def whole(self) -> JSON:
        """Return the object of all that has been added."""
        choices = [self._choice(index, self._joined(pieces)) for index, pieces in enumerate(self._pieces)]
        return {**self.head, "object": self.kind, "choices": choices, "usage": self.usage()}

    def first_chunks(self) -> Iterator[JSON]:
        """Yield what is sent before the first piece."""
        yield from ()

    def chunk(self, piece: Piece) -> JSON:
        """Return the object in which a piece is sent by itself."""
        raise NotImplementedError
