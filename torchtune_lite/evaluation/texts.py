"""Texts that a model writes after prompts, many at a time."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from torchtune_lite.generation import generate
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.utils import counted, get_logger


def generate_texts(
    model: TransformerDecoder,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_strings: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield the number of each of `prompts` (token ids) and the text after it, as they are done: those of like length.

    A text ends before the first of `stop_strings`, and where the model's positions do. Each prompt must leave room for
    a token. Temperature, `top_k` and `seed` are those of `generation.generate`.
    """
    limit = model.config.max_seq_len
    rooms = [min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
    if cramped := sum(room < max_new_tokens for room in rooms):
        get_logger().warning(
            "%s: max_new_tokens %d does not fit the model's %d positions; what fits is generated",
            *(f"{cramped:,} of {counted(len(prompts), 'prompt')}", max_new_tokens, limit),
        )
    order = sorted(range(len(prompts)), key=lambda i: (rooms[i], len(prompts[i])))
    for room, group in groupby(order, key=rooms.__getitem__):
        alike = list(group)
        for batch in (alike[start : start + batch_size] for start in range(0, len(alike), batch_size)):
            new = generate(
                model,
                [prompts[i] for i in batch],
                max_new_tokens=room,
                stop_tokens=tokenizer.stop_tokens,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
            )
            for i, tokens in zip(batch, new, strict=True):
                yield i, before(tokenizer.decode(tokens), stop_strings)


def before(text: str, stop_strings: Sequence[str]) -> str:
    """Return a text up to the first of `stop_strings`; empty ones stop nothing."""
    return text[: min((at for stop in stop_strings if stop and (at := text.find(stop)) >= 0), default=None)]
