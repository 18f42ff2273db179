"""Text generation with a KV cache.

b prompts, s longest prompt, t positions so far, v vocabulary.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.data import Message
from torchtune_lite.errors import ConfigError
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.utils import counted

PROMPT_ROLES = ("system", "user", "assistant")
"""The keys of a prompt, in the order of its messages; an assistant's text is a beginning that is continued."""


@torch.inference_mode()
def generate(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> list[list[int]]:
    """Continue each of `prompts` (token ids, none empty); return the new ids alone, cut before the first stop token.

    `temperature` 0.0 takes the likeliest token; above, tokens are drawn from the softmax, from the `top_k` likeliest
    (None: all). `seed` makes the draw repeatable and leaves the global generator alone. Prompts of different lengths
    are padded on the left, which no token sees. Raise ConfigError when prompt and continuation exceed the model's
    max_seq_len.
    """
    device = model.tok_embeddings.weight.device
    lengths = [len(prompt) for prompt in prompts]
    s = max(lengths)
    check_length(s, max_new_tokens, model.config.max_seq_len)
    sampler = torch.Generator(device).manual_seed(secrets.randbits(63) if seed is None else seed)
    padding = torch.tensor([s - n for n in lengths], device=device)  # [b]
    tokens = torch.tensor([[0] * (s - len(p)) + list(p) for p in prompts], device=device)  # [b, s]
    stops = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    new: list[Tensor] = []
    was_training = model.training
    model.eval()
    model.setup_caches(len(prompts), s + max_new_tokens)
    try:
        for start in range(s, s + max_new_tokens):
            slots = torch.arange(start - tokens.shape[1], start, device=device)  # where `tokens` go in the cache
            positions = (slots - padding[:, None]).clamp(min=0)  # [b, s or 1]
            mask = _mask(slots, padding) if padding.any() else None
            hidden = model(tokens, input_pos=positions, mask=mask, skip_output=True)[:, -1]
            chosen = _choose(model.logits(hidden).float(), temperature, top_k, sampler)  # [b]
            new.append(chosen)
            stopped |= torch.isin(chosen, stops)
            if stopped.all():
                break
            tokens = chosen[:, None]
    finally:
        model.delete_caches()
        model.train(was_training)
    rows = torch.stack(new, dim=1).tolist() if new else [[] for _ in prompts]
    return [_before_stop(row, stop_tokens) for row in rows]


def check_length(prompt_len: int, max_new_tokens: int, max_seq_len: int) -> None:
    """Raise ConfigError where a prompt and its continuation exceed the positions of a model."""
    if prompt_len + max_new_tokens > max_seq_len:
        raise ConfigError(
            f"a prompt of {counted(prompt_len, 'token')} and max_new_tokens {max_new_tokens} exceed the model's "
            f"max_seq_len {max_seq_len}; lower max_new_tokens or shorten the prompt"
        )


def encode_prompt(tokenizer: Any, prompt: str | Mapping[str, str | None]) -> list[int]:
    """Encode a text as it is, or a mapping role → text (None: left out) through the tokenizer's prompt template.

    Raise ConfigError for a prompt without a text, one with a role that is not known, and one that would be cut.
    """
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt, add_bos=True, add_eos=False)
        if not tokens:
            raise ConfigError("prompt is empty, and the tokenizer has no BOS to start from")
        return tokens
    if unknown := [role for role in prompt if role not in PROMPT_ROLES]:
        raise ConfigError(f"prompt.{unknown[0]} is not a role; allowed are {', '.join(PROMPT_ROLES)}")
    messages = [Message(role, prompt[role]) for role in PROMPT_ROLES if prompt.get(role) is not None]
    if not messages:
        raise ConfigError("prompt has no text; set prompt.user=..., or prompt=... for one to continue")
    sample = tokenizer({"messages": messages}, inference=True)
    if sample["truncated"]:
        raise ConfigError(f"prompt is longer than tokenizer.max_seq_len={tokenizer.max_seq_len}; raise it or set null")
    return sample["tokens"]


def _mask(slots: Tensor, padding: Tensor) -> Tensor:
    """Let queries at `slots` see what came before and is no padding, bool `[b, 1, s, t]`; padding sees itself."""
    keys = torch.arange(int(slots[-1]) + 1, device=slots.device)
    causal = keys <= slots[:, None]  # [s, t]
    real = keys >= padding[:, None]  # [b, t]
    return ((causal & real[:, None]) | (keys == slots[:, None]))[:, None]


def _choose(logits: Tensor, temperature: float, top_k: int | None, sampler: torch.Generator) -> Tensor:
    """Pick one token id of each row of `logits [b, v]`."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=sampler).squeeze(1)


def _before_stop(row: list[int], stop_tokens: Collection[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in stop_tokens), len(row))
    return row[:end]
