"""Answers in one call."""

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from torchtune_lite.generation.engine import Engine
from torchtune_lite.generation.sampling import Sampling
from torchtune_lite.modules import TransformerDecoder

SLOTS = 64
"""Prompts that are answered together at most."""


def generate(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    stop_tokens: Collection[int] = (),
    tokenizer: Any = None,
    int8: bool = False,
    seed: int | None = None,
    **sampling: Any,
) -> list[list[int]]:
    """Continue each of `prompts` (token ids, none empty); return the new ids alone, cut before the first stop token.

    `sampling` are the fields of `Sampling`, `max_new_tokens` first. `seed` makes the draw of all repeatable and leaves
    the global generator alone. Raise ConfigError for a prompt that fills the model's positions.
    """
    settings = Sampling(seed=seed, **sampling)
    slots = max(min(len(prompts), SLOTS), 1)
    with closing(Engine(model, slots=slots, stop_tokens=stop_tokens, tokenizer=tokenizer, int8=int8)) as engine:
        requests = []
        for number, prompt in enumerate(prompts):
            own = settings if seed is None else replace(settings, seed=seed + number)
            requests += engine.submit(prompt, own)
        engine.run()
    return [request.tokens for request in requests]
