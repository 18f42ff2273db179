"""Texts that a model writes after prompts, many at a time."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from torchtune_lite.generation import Engine, Sampling, text_of
from torchtune_lite.modules import TransformerDecoder


def generate_texts(
    model: TransformerDecoder,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    batch_size: int,
    max_seq_len: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield the number of each of `prompts` (token ids) and the text after it, as they are done.

    `batch_size` of them are answered together, each drawn as its own of `samplings` says. `max_seq_len` bounds prompt
    and text (None: the model's).
    """
    if not prompts:
        return
    slots, stop_tokens = min(batch_size, len(prompts)), tokenizer.stop_tokens
    engine = Engine(model, slots=slots, max_seq_len=max_seq_len, stop_tokens=stop_tokens, tokenizer=tokenizer)
    with closing(engine):
        running = {}
        for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            [request] = engine.submit(prompt, sampling)
            running[request] = number
        while running:
            for request in engine.step():
                if request.finish_reason is not None:
                    text = text_of(request.tokens, tokenizer, request.sampling.stop_strings)
                    yield running.pop(request), text
