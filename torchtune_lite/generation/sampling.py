"""How the next tokens are chosen, for a batch whose rows have settings of their own.

b rows, v vocabulary.
"""

import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchtune_lite.errors import ConfigError
from torchtune_lite.utils import to_device

CANDIDATES = 1024
"""Tokens among which the likeliest that make up `top_p` are looked for first, on a CPU, where sorting all is slow."""

RUN = 256
"""Logits of which the largest is found at a time."""

LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken: logits divided by so little overflow."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is drawn; ConfigError for a setting that has no meaning.

    `temperature` 0.0 takes the likeliest token. Above, tokens are drawn from the softmax of logit / temperature, cut to
    the `top_k` likeliest, then to the likeliest that make up `top_p` of the rest, then to those of at least `min_p`
    times the largest probability (None: all). `repetition_penalty` divides positive logits of tokens that were seen,
    prompt included, and multiplies negative ones (arXiv 1909.05858, section 4.1; 1.0: off). `seed` makes the draw
    repeatable, whatever is drawn beside it (None: a fresh one). An answer ends before the first of `stop_strings`.
    `logprobs` n notes for each token its log-probability, before all of these settings, and the n likeliest tokens.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_strings: Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 0, "0 or more"),
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k is None or self.top_k >= 1, "1 or more, or null for all tokens"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or null for all tokens"),
            "min_p": (self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1, or null for all tokens"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1.0 is off"),
            "stop_strings": (not isinstance(self.stop_strings, str) and all(self.stop_strings), "texts, none empty"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "0 or more, or null for none"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    @property
    def draws(self) -> bool:
        """Whether chance plays a part."""
        return self.temperature >= LEAST_TEMPERATURE

    def dice(self, number: int = 0) -> random.Random:
        """Return the source of the numbers that sample `number` of a prompt is drawn by."""
        return random.Random(secrets.randbits(63) if self.seed is None else f"{self.seed} {number}")


class TokenLogprobs(NamedTuple):
    """The log-probability of a token that was chosen, and those of the likeliest in its place, best first."""

    logprob: float
    top: list[tuple[int, float]]


class Sampler:
    """The settings of the rows of a batch, as tensors on the device of their logits."""

    def __init__(self, settings: Sequence[Sampling], vocab_size: int, device: torch.device) -> None:
        self.greedy = not any(each.draws for each in settings)
        self.penalised = any(each.repetition_penalty != 1 for each in settings)
        self.num_logprobs = [each.logprobs for each in settings]
        self.notes = any(count is not None for count in self.num_logprobs)
        self.filtered = any(each.draws and (each.top_k or each.top_p or each.min_p) for each in settings)
        self.max_k = max(each.top_k or 0 for each in settings)
        self.nucleus = any(each.top_p for each in settings)

        def column(values: list[float]) -> Tensor:
            return to_device(torch.tensor(values)[:, None], device)

        self.draws = column([each.draws for each in settings])
        self.temperature = column([each.temperature if each.draws else 1.0 for each in settings])
        self.top_k = column([min(each.top_k or vocab_size, vocab_size) for each in settings])
        self.top_p = column([each.top_p or 1.0 for each in settings])
        self.log_min_p = column([math.log(each.min_p) if each.min_p else -math.inf for each in settings])
        self.penalty = column([each.repetition_penalty for each in settings])

    def choose(self, logits: Tensor, chances: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """Return a token id for each row of `logits [b, v] float32`: `[b] int64`.

        `chances [b]`, from 0 to below 1, decide what is drawn. `seen [b, v]` are the tokens that a penalty is for.
        """
        if self.penalised:
            logits = torch.where(seen, torch.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)
        best = likeliest(logits)
        if self.greedy:
            return best
        logits = logits / self.temperature
        if self.filtered:
            logits = logits.masked_fill(logits < self._least(logits), -torch.inf)
        shares = logits.softmax(-1).cumsum(-1, dtype=chances.dtype)
        drawn = torch.searchsorted(shares, chances[:, None] * shares[:, -1:], right=True)
        return torch.where(self.draws, drawn.clamp(max=logits.shape[1] - 1), best[:, None])[:, 0]

    def chances(self, dice: Sequence[random.Random]) -> Tensor:
        """Throw the dice of each row."""
        dtype = torch.float32 if self.draws.device.type == "mps" else torch.float64  # which that has not
        return to_device(torch.tensor([each.random() for each in dice], dtype=dtype), self.draws.device)

    def logprobs(self, logits: Tensor, chosen: Tensor) -> list[TokenLogprobs | None]:
        """Return the log-probabilities of `chosen [b]` and of the likeliest tokens, for the rows that want them."""
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(min(max(count or 0 for count in self.num_logprobs), logits.shape[1]))
        rows = zip(
            self.num_logprobs,
            logprobs.gather(1, chosen[:, None])[:, 0].tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
        return [
            None if count is None else TokenLogprobs(logprob, list(zip(ids, values, strict=True))[:count])
            for count, logprob, ids, values in rows
        ]

    def _least(self, logits: Tensor) -> Tensor:
        """Return the least logit that each row may draw, `[b, 1]`; of those as large all may be drawn."""
        v = logits.shape[1]
        on_cpu = logits.device.type == "cpu"
        k = max(self.max_k, CANDIDATES if self.nucleus and on_cpu else 0)
        whole = self.nucleus and not on_cpu
        top = logits.sort(descending=True).values if whole else logits.topk(min(max(k, 1), v)).values
        total = logits.logsumexp(-1, keepdim=True)
        if self.nucleus and on_cpu and not self._holds_nucleus(top, total):
            top = logits.sort(descending=True).values
        top = top.masked_fill(torch.arange(top.shape[1], device=top.device) >= self.top_k, -torch.inf)  # [b, k]
        least = torch.where(self.top_k < v, top.gather(1, (self.top_k - 1).clamp(max=top.shape[1] - 1)), -torch.inf)
        if self.nucleus:
            total = torch.where(self.top_k < v, top.logsumexp(-1, keepdim=True), total)
            shares = (top - total).exp()
            inside = shares.cumsum(-1) - shares < self.top_p  # the share of likelier ones
            last = top.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
            least = torch.where(self.top_p < 1, torch.maximum(least, last), least)
        return torch.maximum(least, top[:, :1] + self.log_min_p)

    def _holds_nucleus(self, top: Tensor, total: Tensor) -> bool:
        """Whether the likeliest logits, `top [b, k]`, make up `top_p` of each row that has no `top_k` within them."""
        share = (top.logsumexp(-1, keepdim=True) - total).exp()
        return bool(((share >= self.top_p) | (self.top_p == 1) | (self.top_k <= top.shape[1])).all())


def likeliest(logits: Tensor) -> Tensor:
    """Return the place of the largest of `logits [b, v]`, the first of equal ones: `[b] int64`.

    A CPU finds the largest value many times faster than its place, so the run that has it is found first.
    """
    b, v = logits.shape
    whole = v - v % RUN
    if logits.device.type != "cpu" or not whole:
        return logits.argmax(-1)
    runs = logits[:, :whole].unflatten(1, (-1, RUN))
    run = runs.amax(-1).argmax(-1)
    best = run * RUN + runs[torch.arange(b), run].argmax(-1)
    if whole == v:
        return best
    both = torch.stack([best, whole + logits[:, whole:].argmax(-1)], 1)
    return both.gather(1, logits.gather(1, both).argmax(-1, keepdim=True))[:, 0]
